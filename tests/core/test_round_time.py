# SPDX-License-Identifier: Apache-2.0
"""A round's time: the formula against a batch-by-batch simulation of training, sending and the window."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitee.round_time import pace, round_seconds


def simulate(steps: int, compute: float, upload: float, round_trip: float, window: int) -> float:
    """Batch after batch: trained as soon as the window has room, sent in order, acknowledged."""
    trained, sent = 0.0, 0.0
    acknowledged: list[float] = []
    for step in range(steps):
        room = acknowledged[step - window] if step >= window else 0.0
        trained = max(trained + compute, room)
        sent = max(sent, trained) + upload
        acknowledged.append(sent + round_trip)
    return acknowledged[-1]


@pytest.mark.parametrize(
    ("compute", "upload", "round_trip", "window", "sets_the_pace"),
    [
        (0.2, 0.05, 0.01, 8, 0.2),  # training
        (0.05, 0.2, 0.01, 8, 0.2),  # the link
        (0.01, 0.01, 0.79, 8, 0.1),  # the window's turnover
    ],
)
def test_slowest_part_sets_the_pace_and_the_round_time(
    compute: float, upload: float, round_trip: float, window: int, sets_the_pace: float
) -> None:
    assert pace(compute, upload, round_trip, window) == pytest.approx(sets_the_pace)
    formula = round_seconds(100, compute, upload, round_trip, window)
    assert formula == pytest.approx(simulate(100, compute, upload, round_trip, window), rel=0.1)


seconds = st.floats(0.001, 1.0)


@given(compute=seconds, upload=seconds, round_trip=st.floats(0, 1), window=st.integers(4, 16))
def test_time_of_long_rounds_agrees_with_the_simulation(
    compute: float, upload: float, round_trip: float, window: int
) -> None:
    steps = 400
    expected = simulate(steps, compute, upload, round_trip, window)
    assert round_seconds(steps, compute, upload, round_trip, window) == pytest.approx(expected, rel=0.05)


def test_round_of_one_batch_takes_training_sending_and_a_round_trip() -> None:
    assert round_seconds(1, 0.2, 0.1, 0.05) == pytest.approx(0.35)
