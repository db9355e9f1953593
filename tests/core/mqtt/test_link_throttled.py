# SPDX-License-Identifier: Apache-2.0
"""A broker that limits how fast a client publishes: the link slows down, and nothing is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import get_args

import pytest
from benchmarks.throttling import ThrottlingProxy, Way
from fakes import FakeClock

from splitee.mqtt.address import BrokerAddress
from splitee.mqtt.events import Connected, Message
from splitee.mqtt.link import Link
from splitee.mqtt.pace import FIRST, LONGEST, RECOVERY, SETTLE_TIME, Pace
from splitee_lab.local.brokers import RunningBroker

DEADLINE = 60.0
RATE = 10  # packets a second
MESSAGES = 20
TRIES = 3  # within which the pace is found: twice the pause, or four times it


@pytest.fixture(params=get_args(Way))
def throttled(request: pytest.FixtureRequest, mosquitto_broker: RunningBroker) -> Iterator[ThrottlingProxy]:
    address = mosquitto_broker.address
    proxy = ThrottlingProxy(address.host, address.port, RATE, request.param)
    yield proxy
    proxy.close()


@pytest.mark.slow(10)
@pytest.mark.mosquitto
def test_throttled_link_slows_down_by_itself(
    throttled: ThrottlingProxy,
    mosquitto_broker: RunningBroker,
    make_link: Callable[..., Link],
    base: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("splitee.mqtt.link.delays", lambda: repeat(0.05))
    reader = make_link(mosquitto_broker.address, "reader", base)
    writer = make_link(BrokerAddress.parse(throttled.address), "writer")
    missing = set(range(MESSAGES))

    def send_what_is_missing() -> None:
        for number in sorted(missing):
            if not writer.publish(base, number.to_bytes(2, "big") + bytes(1000)):
                return

    send_what_is_missing()
    until = time.monotonic() + DEADLINE
    while missing and time.monotonic() < until:
        for link in (reader, writer):
            while (event := link.receive(0.05)) is not None:
                if link is reader and isinstance(event, Message):
                    missing.discard(int.from_bytes(event.payload[:2], "big"))
                if link is writer and isinstance(event, Connected):
                    send_what_is_missing()
    assert not missing
    assert throttled.complaints
    assert "from now on" in caplog.text
    for _ in range(TRIES):
        while not writer.connected:
            writer.receive(0.05)
        before = throttled.complaints
        taken = [writer.publish(base, bytes([number])) for number in range(MESSAGES)]
        assert writer.flush(DEADLINE)
        if all(taken) and throttled.complaints == before:
            return
    pytest.fail(f"told {throttled.complaints} times, and still too fast")


def test_pause_grows_with_complaints_and_shrinks_after_calm_minutes() -> None:
    clock = FakeClock()
    pace = Pace(clock)
    assert (pace.pause, pace.reserve()) == (0, 0)
    assert pace.slow_down()
    assert pace.pause == FIRST
    assert [round(pace.reserve(), 3) for _ in range(3)] == [0.1, 0.2, 0.3]
    assert not pace.slow_down()  # a complaint about messages sent at the same time
    for _ in range(10):
        clock.advance(max(SETTLE_TIME, 2 * LONGEST))
        assert pace.slow_down()
    assert pace.pause == LONGEST
    for _ in range(100):
        clock.advance(RECOVERY + 1)
        pace.reserve()
    assert pace.pause == 0
