# SPDX-License-Identifier: Apache-2.0
"""Subscriptions with + and #, with which the server reads all devices."""

from __future__ import annotations

from splitee_broker.checks.base import Check, Result
from splitee_broker.checks.context import CheckContext


def run(context: CheckContext) -> Result:
    client = context.connect("wildcards")
    if not getattr(client.properties, "WildcardSubscriptionAvailable", 1):
        return Result("missing", "not supported (Wildcard Subscription Available); members are found by them")
    client.subscribe(context.topic("wild", "+", "status"), context.topic("inbox", "#"))
    topics = {
        context.topic("wild", "a", "status"),
        context.topic("wild", "b", "status"),
        context.topic("inbox", "a", "b"),
    }
    for topic in sorted(topics):
        client.publish(topic, b"x")
    came: set[str] = set()
    while came != topics and (message := client.receive(context.left() / 2)) is not None:
        came.add(message.topic)
    if came != topics:
        return Result("missing", "a subscription with + or # does not get the messages that match it")
    return Result("ok", "subscriptions with + and # get the messages that match them")


CHECK = Check("wildcards", run)
