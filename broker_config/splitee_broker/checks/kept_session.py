# SPDX-License-Identifier: Apache-2.0
"""A session is kept after a broken connection, with the messages that came meanwhile."""

from __future__ import annotations

from splitee.mqtt.link import SESSION_EXPIRY
from splitee_broker.checks.base import Check, Result
from splitee_broker.checks.context import CheckContext


def run(context: CheckContext) -> Result:
    topic = context.topic("session")
    first = context.connect("session", session_expiry=SESSION_EXPIRY)
    first.subscribe(topic)
    first.drop_connection()
    writer = context.connect("writer")
    writer.publish(topic, b"x")
    second = context.connect("session", session_expiry=SESSION_EXPIRY, resumes=True)
    if not second.session_present:
        return Result("limited", "not kept: after a broken connection, unfinished messages are sent again")
    if second.receive(context.left() / 2) is None:
        return Result("limited", "kept without the messages that came meanwhile; they are sent again")
    return Result("ok", "kept over a broken connection, with the messages that came meanwhile")


CHECK = Check("session", run)
