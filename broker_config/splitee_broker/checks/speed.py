# SPDX-License-Identifier: Apache-2.0
"""The broker's speed, measured from here: a figure for comparison, not a requirement."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

from splitee.cli import words
from splitee_broker.checks.base import Check, Result
from splitee_broker.checks.context import CheckContext

ROUND_TRIPS = 20
SECONDS = 1.0  # of publishing
MESSAGE = bytes(1024)


def run(context: CheckContext) -> Result:
    topic = context.topic("speed")
    client, writer = context.connect("echo"), context.connect("writer")
    client.subscribe(topic)
    trips: list[float] = []
    until = time.monotonic() + SECONDS
    while len(trips) < ROUND_TRIPS and time.monotonic() < until:
        sent = time.monotonic()
        client.publish(topic, b"x")
        client.next_message()
        trips.append(time.monotonic() - sent)
    started = time.monotonic()
    until = min(started + SECONDS, started + context.left() / 2)

    def messages() -> Iterator[tuple[str, bytes]]:
        while time.monotonic() < until:
            yield context.topic("nobody"), MESSAGE

    count = sum(1 for _ in writer.publish_all(messages()))
    rate = count / (time.monotonic() - started)
    trip = words.milliseconds(statistics.median(trips))
    return Result(
        "ok", f"round trip {trip}; {rate:,.0f} messages of 1 KiB a second from one client", round(rate)
    )


CHECK = Check("speed", run)
