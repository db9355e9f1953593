# SPDX-License-Identifier: Apache-2.0
"""More messages than any device has to send are not even queued."""

from __future__ import annotations

from fakes import FakeClock

from splitee.protocol.sender_limits import SenderLimits
from splitee.protocol.topics import Topics

TOPICS = Topics("home")


def test_a_burst_passes_and_then_the_rate() -> None:
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


def test_nobody_pays_for_another_and_all_topics_of_a_device_count_together() -> None:
    limits = SenderLimits(TOPICS, rate=10, burst=2, clock=FakeClock())
    for leaf in ("sync", "features", "status"):
        limits.admits(TOPICS.device("evil", leaf))
    assert limits.admits(TOPICS.device("pi-1", "features"))
    assert limits.admits(TOPICS.server_claim)
    assert limits.take_refused() == {"evil": 1}


def test_clicks_have_a_rate_of_their_own_and_no_device_is_blamed_for_them() -> None:
    limits = SenderLimits(TOPICS, rate=10, burst=2, clock=FakeClock())
    clicks = [TOPICS.device(device, "install") for device in ("pi-1", "pi-2", "install")]
    assert [limits.admits(topic) for topic in clicks] == [True, True, False]
    assert limits.admits(TOPICS.device("pi-1", "status"))
    assert limits.admits(TOPICS.device("install", "status"))
    assert limits.take_refused() == {}
