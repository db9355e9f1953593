# SPDX-License-Identifier: Apache-2.0
"""How many messages the broker queues for a client that does not read, as the server sometimes does not."""

from __future__ import annotations

from splitee_broker.checks.base import Check, Result
from splitee_broker.checks.client import Client, ConnectionLost, ReplyTimeout
from splitee_broker.checks.context import CheckContext
from splitee_broker.limits import limits

SIZE = 64  # bytes: the check counts messages; their bytes are limited by max_queued_bytes
SILENCE = 1.0  # seconds after which no more come


def run(context: CheckContext) -> Result:
    needed = limits(context.devices)["max_queued_messages"]
    topic = context.topic("queue")
    reader, writer = context.connect("reader"), context.connect("writer")
    reader.subscribe(topic)
    messages = ((topic, b"%0*d" % (SIZE, number)) for number in range(needed))
    count = 0
    try:
        for count, _ in enumerate(writer.publish_all(messages), 1):
            if count % 1000 == 0:
                context.progress(f"{count:,} of {needed:,} messages")
    except ReplyTimeout:
        return Result("unknown", f"only {count:,} of {needed:,} messages are there in time", count, needed)
    except ConnectionLost as lost:
        return Result("missing", f"while messages wait for a client that does not read: {lost}", None, needed)
    try:
        held = _read(reader, needed)
    except ConnectionLost as lost:
        return Result("missing", f"the connection of a client that does not read: {lost}", None, needed)
    if held < needed:
        return Result(
            "missing",
            f"it holds {held:,} of {needed:,} messages for a client that does not read, and drops the others "
            "silently (Mosquitto: max_queued_messages)",
            held,
            needed,
        )
    return Result("ok", f"it holds {held:,} messages for a client that does not read", held, needed)


def _read(reader: Client, most: int) -> int:
    """Counts the messages that come."""
    count = 0
    while count < most and reader.receive(SILENCE) is not None:
        count += 1
    return count


CHECK = Check("queue", run, seconds=7.0, seconds_a_device=0.02)
