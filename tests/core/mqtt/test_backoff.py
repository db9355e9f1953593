# SPDX-License-Identifier: Apache-2.0
"""Back-off: jitter within doubling bounds, and tries that end on the deadline."""

from __future__ import annotations

from itertools import islice, repeat

from splitee.mqtt.backoff import delays, tries


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


def test_delays_draw_from_zero_to_a_doubling_ceiling() -> None:
    ceilings = islice(delays(first=0.5, longest=3.0, draw=lambda low, high: high + 1000 * low), 6)
    assert list(ceilings) == [0.5, 1.0, 2.0, 3.0, 3.0, 3.0]


def test_delays_are_random_up_to_the_ceiling() -> None:
    drawn = list(islice(delays(first=8.0, longest=8.0), 50))
    assert all(0.0 <= delay <= 8.0 for delay in drawn)
    assert len(set(drawn)) > 40


def test_last_try_falls_on_the_deadline() -> None:
    clock = Clock()
    moments = [(clock.now - 100.0, pause) for pause in tries(5.0, repeat(2.0), clock.wait, clock)]
    assert moments == [(0.0, 2.0), (2.0, 2.0), (4.0, 1.0), (5.0, 0.0)]


def test_duration_of_a_try_counts_towards_the_deadline() -> None:
    clock = Clock()
    pauses = []
    for pause in tries(5.0, repeat(2.0), clock.wait, clock):
        pauses.append(pause)
        clock.wait(4.0)
    assert pauses == [2.0, 0.0]


def test_timeout_of_zero_allows_one_try() -> None:
    clock = Clock()
    assert list(tries(0.0, repeat(2.0), clock.wait, clock)) == [0.0]


def test_tries_never_end_without_a_timeout() -> None:
    clock = Clock()
    assert len(list(islice(tries(None, repeat(60.0), clock.wait, clock), 1000))) == 1000
    assert clock.now == 100.0 + 999 * 60
