# SPDX-License-Identifier: Apache-2.0
"""Maximum Packet Size: messages that are not sent in parts must fit one packet; batches are sent in parts."""

from __future__ import annotations

import math

from splitee.cli import words
from splitee.mqtt.link import ENVELOPE
from splitee.protocol.routes import LARGEST_WHOLE
from splitee_broker.checks.base import Check, Result
from splitee_broker.checks.client import ConnectionLost, ReplyTimeout
from splitee_broker.checks.context import CheckContext

LARGEST_PACKET = 1 << 20  # bytes of the largest packet that a link sends
LIMIT = 6.0  # seconds
BATCH = 32 * 64 * 24 * 24 * 2  # bytes: 32 images of 3x96x96 through resnet18 up to its widest cut, as fp16


def run(context: CheckContext) -> Result:
    client = context.connect("packets")
    announced = getattr(client.properties, "MaximumPacketSize", None)
    size = min(LARGEST_PACKET, announced or LARGEST_PACKET)
    whole = LARGEST_WHOLE + ENVELOPE
    if size < whole:
        return Result(
            "missing",
            f"packets of at most {words.size(size)}, but messages that are not sent in parts have up to "
            f"{words.size(whole)}",
            size,
            whole,
        )
    topic = context.topic("packets")
    client.subscribe(topic)
    try:
        code = client.publish(topic, bytes(size - ENVELOPE))
        came = client.next_message()
    except ReplyTimeout:
        return Result(
            "limited", f"a packet of {words.size(size)} takes more than {LIMIT:.0f} s", 0, LARGEST_PACKET
        )
    except ConnectionLost as lost:
        return Result(
            "missing",
            f"a packet of {words.size(size)}: {lost}; it announces no such limit",
            0,
            LARGEST_PACKET,
        )
    if code.is_failure or len(came.payload) != size - ENVELOPE:
        return Result("missing", f"a packet of {words.size(size)} does not arrive", 0, LARGEST_PACKET)
    parts = math.ceil(BATCH / (size - ENVELOPE))
    in_parts = f"a batch of the default network ({words.size(BATCH)}) takes {parts:,}"
    return Result(
        "ok" if size == LARGEST_PACKET else "limited",
        f"a packet of {words.size(size)} arrives; {in_parts}",
        size,
        LARGEST_PACKET,
    )


CHECK = Check("packet-size", run, seconds=LIMIT)
