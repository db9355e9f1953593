# SPDX-License-Identifier: Apache-2.0
"""The time left of a demo: from the pace of the current part and the guesses for the rest."""

from __future__ import annotations

import pytest
from fakes import FakeClock

from splitee_lab.demo.estimate import Estimate


def test_time_left_is_unknown_until_every_part_has_a_pace_or_a_guess() -> None:
    clock = FakeClock()
    estimate = Estimate("first", "second", clock=clock)
    assert estimate.under_way is None and estimate.left() is None
    estimate.advance("first", 0.0)
    clock.advance(5)
    assert estimate.left() is None, "nothing of it is done"
    estimate.advance("first", 0.25)
    assert estimate.left() is None, "of the second nothing is known"
    estimate.expect("second", 30)
    assert estimate.left() == pytest.approx(15 + 30)


def test_time_left_follows_the_guess_until_the_pace_is_known() -> None:
    clock = FakeClock()
    estimate = Estimate("only", clock=clock)
    estimate.expect("only", 100)
    assert estimate.left() == 100
    estimate.advance("only", 0.0)
    clock.advance(10)
    assert estimate.left() == 90
    estimate.advance("only", 0.1)  # a pace of 100 s in all, as was guessed
    assert estimate.left() == pytest.approx(90)
    clock.advance(10)
    estimate.advance("only", 0.5)  # but it is much faster
    assert estimate.left() == pytest.approx(20)
    clock.advance(1000)
    estimate.advance("only", 1.0)
    assert estimate.left() == 0


def test_part_that_begins_ends_the_parts_before_it() -> None:
    clock = FakeClock()
    estimate = Estimate("first", "skipped", "last", clock=clock)
    estimate.expect("last", 10)
    estimate.advance("first", 0.1)
    clock.advance(7)
    estimate.advance("last", 0.0)
    assert (estimate.under_way, estimate.elapsed("first"), estimate.elapsed("skipped")) == ("last", 7, 0)
    assert estimate.left() == 10
    estimate.advance("unheard of", 0.5)
    estimate.advance("last", 0.5)
    estimate.advance("last", 0.2)
    clock.advance(4)
    assert estimate.left() == pytest.approx(4), "what is done stays done"
