# SPDX-License-Identifier: Apache-2.0
"""Limits on the number of messages that each device may send."""

from __future__ import annotations

import tracemalloc

from fakes import FakeClock

from splitee.protocol.routes import find_route
from splitee.protocol.sender_limits import SenderLimits
from splitee.protocol.topics import Topics

TOPICS = Topics("home")


def test_device_is_limited_to_a_burst_and_then_a_rate() -> None:
    clock = FakeClock()
    limits = SenderLimits(TOPICS, rate=10, burst=5, clock=clock)
    topic = TOPICS.device("evil", "sync")
    assert [limits.admits(topic) for _ in range(8)] == [True] * 5 + [False] * 3
    clock.advance(0.2)
    assert [limits.admits(topic) for _ in range(3)] == [True, True, False]
    clock.advance(1000)
    assert [limits.admits(topic) for _ in range(6)] == [True] * 5 + [False]
    assert limits.take_refused() == {"evil": 5}
    assert limits.take_refused() == {}


def test_limit_applies_to_all_topics_of_one_device_together() -> None:
    limits = SenderLimits(TOPICS, rate=10, burst=2, clock=FakeClock())
    for leaf in ("sync", "features", "status"):
        limits.admits(TOPICS.device("evil", leaf))
    assert limits.admits(TOPICS.device("pi-1", "features"))
    assert limits.admits(TOPICS.server_claim)
    assert limits.take_refused() == {"evil": 1}


def test_install_clicks_share_a_limit_and_count_against_no_device() -> None:
    limits = SenderLimits(TOPICS, rate=10, burst=2, clock=FakeClock())
    clicks = [TOPICS.device(device, "install") for device in ("pi-1", "pi-2", "install")]
    assert [limits.admits(topic) for topic in clicks] == [True, True, False]
    assert limits.admits(TOPICS.device("pi-1", "status"))
    assert limits.admits(TOPICS.device("install", "status"))
    assert limits.take_refused() == {}


def test_name_that_no_device_may_have_is_not_admitted_and_takes_no_memory() -> None:
    limits = SenderLimits(TOPICS)
    tracemalloc.start()
    for number in range(200):
        name = f"{number:060000}"
        assert not limits.admits(TOPICS.device(name, "sync"))
        assert find_route(TOPICS, TOPICS.device(name, "sync")) is None
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 1 << 20
    assert limits.take_refused() == {}


def test_refused_messages_are_taken_once() -> None:
    limits = SenderLimits(TOPICS, rate=10, burst=1, clock=FakeClock())
    taken = limits.take_refused()
    for _ in range(3):
        limits.admits(TOPICS.device("evil", "sync"))
    assert taken == {}
    assert limits.take_refused() == {"evil": 2}
