# SPDX-License-Identifier: Apache-2.0
"""How long a round may take: median + k x MAD with a floor (late devices: test_service_deadlines.py)."""

from __future__ import annotations

from splitee_server.rounds.deadline import AdaptiveLimit


def test_limit_is_the_floor_before_the_first_measurement() -> None:
    assert AdaptiveLimit(30).seconds() == 30


def test_limit_hardly_changes_after_one_slow_round() -> None:
    deadline = AdaptiveLimit(1, k=6)
    for seconds in (10, 11, 9, 10, 500):
        deadline.note(seconds)
    assert deadline.seconds() == 10 + 6 * 1


def test_limit_follows_rounds_that_keep_taking_longer() -> None:
    deadline = AdaptiveLimit(1, k=6)
    for _ in range(40):
        deadline.note(100)
    assert deadline.seconds() == 100
