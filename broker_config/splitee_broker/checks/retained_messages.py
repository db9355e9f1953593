# SPDX-License-Identifier: Apache-2.0
"""Retained messages, which hold a fleet's state."""

from __future__ import annotations

from splitee_broker.checks.base import Check, Result
from splitee_broker.checks.context import CheckContext


def run(context: CheckContext) -> Result:
    writer = context.connect("writer")
    if not getattr(writer.properties, "RetainAvailable", 1):
        return Result("missing", "not supported (Retain Available); they hold the state of a fleet")
    topic = context.retained("retained")
    writer.publish(topic, b"first", retain=True)
    writer.publish(topic, b"last", retain=True)
    reader = context.connect("reader")
    for name in (topic, context.topic("+")):
        reader.subscribe(name)
        message = reader.receive(context.left() / 3)
        if message is None or not message.retain or message.payload != b"last":
            how = "to its topic" if name == topic else "with a wildcard, as the server's,"
            return Result("missing", f"a later subscription {how} does not get the retained message")
    writer.publish(topic, b"", retain=True)
    late = context.connect("late")
    late.subscribe(topic)
    if (message := late.receive(context.left() / 3)) is not None:
        return Result("missing", "an empty message does not clear the retained one")
    return Result(
        "ok", "the last one is kept, is sent to later subscribers, also for a wildcard, and can be cleared"
    )


CHECK = Check("retained", run)
