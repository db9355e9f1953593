# SPDX-License-Identifier: Apache-2.0
"""Message expiry: it is counted down, which shows how old a retained message is, and it ends messages."""

from __future__ import annotations

import time

from splitee_broker.checks.base import Check, Result
from splitee_broker.checks.context import CheckContext

LONG, SHORT = 1000, 1  # seconds
WAIT = 2.2  # seconds, because brokers count whole ones


def run(context: CheckContext) -> Result:
    old, gone = context.retained("expiry", "old"), context.retained("expiry", "gone")
    writer = context.connect("writer")
    writer.publish(old, b"x", retain=True, MessageExpiryInterval=LONG)
    writer.publish(gone, b"x", retain=True, MessageExpiryInterval=SHORT)
    time.sleep(WAIT)
    reader = context.connect("reader")
    reader.subscribe(old, gone)
    left: dict[str, int] = {}
    while (message := reader.receive(min(1.0, context.left() / 2))) is not None:
        left[message.topic] = getattr(message.properties, "MessageExpiryInterval", LONG)
    if old not in left:
        return Result(
            "limited", "a retained message with an expiry is not kept: no status of an absent device"
        )
    if left[old] >= LONG:
        return Result("limited", "not counted down: the age of a retained status is unknown")
    if gone in left:
        return Result(
            "limited", "messages come after their expiry: requests that nobody waits for are served"
        )
    return Result("ok", f"counted down ({LONG - left[old]} s of {LONG} s), and enforced")


CHECK = Check("message-expiry", run, seconds=6.0)
