# SPDX-License-Identifier: Apache-2.0
"""Rules of averages compared with NumPy, and the influence of one holder of a tensor."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splitee_server.learning import means
from splitee_server.learning.averages import average_by_name
from splitee_server.learning.means import Rule, bounded, trimmed_mean

SHAPE = (3, 5)


def combine(rule: Rule, values: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
    devices = [f"pi-{number}" for number in range(len(values))]
    return rule.combine(dict(zip(devices, values, strict=True)), dict(zip(devices, weights, strict=True)))


def tensors(count: int) -> list[torch.Tensor]:
    return list(torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(count)))


@pytest.mark.parametrize("count", [3, 4, 5, 6, 10, 11])
def test_median_and_trimmed_mean_are_taken_per_coordinate(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = tensors(count)
    stacked = np.stack([value.numpy() for value in values]).astype(np.float64)
    trim = max(1, int(0.2 * count))
    expected = np.sort(stacked, axis=0)[trim : count - trim].mean(axis=0)
    for at_once in (means.AT_ONCE, 4):
        monkeypatch.setattr(means, "AT_ONCE", at_once)
        trimmed = combine(Rule("trimmed"), values, [1.0] * count)
        np.testing.assert_allclose(trimmed.numpy(), expected, rtol=1e-12)
        median = combine(Rule("median"), values, [1.0] * count)
        np.testing.assert_allclose(median.numpy(), np.median(stacked, axis=0), rtol=1e-12)


@pytest.mark.parametrize("average", ["trimmed", "median"])
def test_two_holders_are_averaged_by_weight_and_three_regardless_of_it(average: means.Average) -> None:
    values = tensors(3)
    two = combine(Rule(average), values[:2], [3, 1])
    torch.testing.assert_close(two, (3 * values[0].double() + values[1].double()) / 4)
    assert torch.equal(combine(Rule(average), values, [3, 1, 1]), combine(Rule(average), values, [1, 1, 1]))


@pytest.mark.parametrize("average", ["trimmed", "median"])
@pytest.mark.parametrize("wild", [1e30, -1e30, float("inf"), float("nan")])
def test_robust_average_of_five_stays_within_the_range_of_four_honest_holders(
    average: means.Average, wild: float
) -> None:
    values = tensors(4)
    average_of_all = combine(Rule(average), [*values, torch.full(SHAPE, wild)], [1.0] * 5)
    honest = torch.stack(values).double()
    assert bool((average_of_all >= honest.amin(0)).all() and (average_of_all <= honest.amax(0)).all())


def test_trimmed_mean_accepts_scalars_and_channels_last_tensors() -> None:
    assert trimmed_mean([torch.tensor(float(value)) for value in (1, 2, 9)], 1) == 2
    images = [torch.randn(2, 3, 4, 4) for _ in range(3)]
    turned = [image.to(memory_format=torch.channels_last) for image in images]
    assert torch.equal(trimmed_mean(images, 1), trimmed_mean(turned, 1))


def test_device_of_weight_zero_is_no_holder() -> None:
    holders = {name: {"x": torch.full((2,), value)} for name, value in {"a": 1.0, "b": 9.0, "c": 3.0}.items()}
    for rule in (Rule(), Rule("median")):
        average = average_by_name(holders, {"a": 1, "b": 0, "c": 1}, rule)["x"]
        assert average.tolist() == [2.0, 2.0]
    assert average_by_name(holders, dict.fromkeys(holders, 0), Rule("median")) == {}


def test_shares_below_the_limit_stay_unchanged() -> None:
    weights = [250, 240, 180]
    assert bounded(weights, 0.5) is weights
    assert bounded(weights, 1.0) is weights
    assert bounded([7], 0.1) == [1.0]


def test_share_above_the_limit_is_reduced_without_changing_the_others() -> None:
    assert bounded([1 << 62, 2, 1], 0.5) == [3.0, 2, 1]
    assert bounded([8, 8, 1, 1], 0.3) == pytest.approx([1.5, 1.5, 1, 1])
    assert bounded([100, 1, 1], 1 / 3) == [1.0, 1.0, 1.0]


@given(
    st.lists(st.integers(1, 1 << 40), min_size=1, max_size=30),
    st.floats(0.001, 1),
)
def test_bounded_shares_respect_the_limit_and_keep_their_order(weights: list[int], largest: float) -> None:
    shares = np.array(bounded(weights, largest), dtype=np.float64)
    shares /= shares.sum()
    assert shares.max() <= max(largest, 1 / len(weights)) * (1 + 1e-9)
    order = np.argsort(weights, kind="stable")
    assert all(first <= second * (1 + 1e-9) for first, second in pairwise(shares[order]))
    below = shares < shares.max() * (1 - 1e-9)
    kept = np.array(weights, dtype=np.float64)[below]
    np.testing.assert_allclose(shares[below] / shares[below].sum(), kept / kept.sum())
