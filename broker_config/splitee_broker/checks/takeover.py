# SPDX-License-Identifier: Apache-2.0
"""A client takes over its id from its own dead connection."""

from __future__ import annotations

from splitee_broker.checks.base import Check, Result
from splitee_broker.checks.client import ConnectionLost, ReplyTimeout
from splitee_broker.checks.context import CheckContext


def run(context: CheckContext) -> Result:
    first = context.connect("twin")
    try:
        second = context.connect("twin")
    except ConnectionLost as lost:
        return Result("missing", f"a second connection of one client id: {lost}; reconnecting at once fails")
    try:
        first.wait_until_lost()
    except ReplyTimeout:
        return Result("missing", "two connections of one client id exist together: messages come twice")
    topic = context.topic("takeover")
    second.subscribe(topic)
    second.publish(topic, b"x")
    second.next_message()
    return Result("ok", "a new connection ends the old one of its client id")


CHECK = Check("takeover", run)
