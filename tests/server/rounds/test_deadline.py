# SPDX-License-Identifier: Apache-2.0
"""How long a round may take: median + k x MAD with a floor. Who is late: tests/server/test_service.py."""

from __future__ import annotations

from splitee_server.rounds.deadline import AdaptiveLimit


def test_the_floor_holds_until_something_is_known() -> None:
    assert AdaptiveLimit(30).seconds() == 30


def test_one_slow_round_hardly_moves_it() -> None:
    deadline = AdaptiveLimit(1, k=6)
    for seconds in (10, 11, 9, 10, 500):
        deadline.note(seconds)
    assert deadline.seconds() == 10 + 6 * 1


def test_it_follows_rounds_that_really_take_longer() -> None:
    deadline = AdaptiveLimit(1, k=6)
    for _ in range(40):
        deadline.note(100)
    assert deadline.seconds() == 100
