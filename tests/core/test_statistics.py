# SPDX-License-Identifier: Apache-2.0
"""The interval of a share and the test of a difference, against values that are known."""

from __future__ import annotations

import pytest

from splitee.statistics import mcnemar_p_value, wilson


@pytest.mark.parametrize(
    ("hits", "count", "expected"),
    [
        (0, 0, (0.0, 1.0)),
        (0, 10, (0.0, 0.2775)),
        (10, 10, (0.7225, 1.0)),
        (81, 263, (0.2553, 0.3662)),  # Newcombe 1998, table I
        (15, 148, (0.0624, 0.1605)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_wilson_interval_agrees_with_published_values(
    hits: int, count: int, expected: tuple[float, float]
) -> None:
    assert wilson(hits, count) == pytest.approx(expected, abs=1e-4)


def test_more_samples_narrow_the_interval() -> None:
    narrow, wide = wilson(800, 1000), wilson(8, 10)
    assert wide[0] < narrow[0] < 0.8 < narrow[1] < wide[1]


@pytest.mark.parametrize(
    ("losses", "gains", "chance"),
    [(0, 0, 1.0), (5, 0, 1 / 32), (6, 0, 1 / 64), (1, 9, 1023 / 1024), (15, 5, 0.0207), (5, 15, 0.9941)],
)
def test_chance_of_a_difference_follows_the_binomial_distribution(
    losses: int, gains: int, chance: float
) -> None:
    assert mcnemar_p_value(losses, gains) == pytest.approx(chance, abs=1e-4)
