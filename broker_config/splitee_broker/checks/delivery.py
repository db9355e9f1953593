# SPDX-License-Identifier: Apache-2.0
"""QoS 1: every message is acknowledged and delivered, in the order of publication."""

from __future__ import annotations

from splitee_broker.checks.base import Check, Result
from splitee_broker.checks.context import CheckContext

MESSAGES = 100


def run(context: CheckContext) -> Result:
    topic = context.topic("delivery")
    reader, writer = context.connect("reader"), context.connect("writer")
    reader.subscribe(topic)
    numbers = {b"%d" % number: number for number in range(MESSAGES)}
    came: list[int] = []
    acknowledged = writer.publish_all((topic, payload) for payload in numbers)
    while len(came) < MESSAGES:
        # Read while publishing: another check tests messages that wait for a reader.
        patience = context.left() / 2 if next(acknowledged, None) is None else 0.0
        message = reader.receive(patience)
        if message is None and patience:
            break
        if message is not None and message.qos != 1:
            return Result("missing", f"what is published at QoS 1 comes at QoS {message.qos}")
        if message is not None and (payload := bytes(message.payload)) in numbers:
            came.append(numbers[payload])
    if set(came) != set(range(MESSAGES)):
        return Result(
            "missing", f"{len(set(came))} of {MESSAGES} acknowledged messages came", len(came), MESSAGES
        )
    if came != sorted(came):
        return Result("missing", "messages of one topic come in another order than they were published in")
    return Result("ok", f"{MESSAGES} of {MESSAGES} acknowledged messages came, in order", len(came), MESSAGES)


CHECK = Check("qos-1", run)
