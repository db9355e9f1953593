# SPDX-License-Identifier: Apache-2.0
"""A client takes over its id from its own dead connection."""

from __future__ import annotations

from splitee_broker.checks.base import Check, Result
from splitee_broker.checks.client import Late, Lost
from splitee_broker.checks.workbench import Workbench


def run(bench: Workbench) -> Result:
    first = bench.connect("twin")
    try:
        second = bench.connect("twin")
    except Lost as lost:
        return Result("missing", f"a second connection of one client id: {lost}; reconnecting at once fails")
    try:
        first.wait_until_lost()
    except Late:
        return Result("missing", "two connections of one client id exist together: messages come twice")
    topic = bench.topic("takeover")
    second.subscribe(topic)
    second.publish(topic, b"x")
    second.next_message()
    return Result("ok", "a new connection ends the old one of its client id")


CHECK = Check("takeover", run)
