# SPDX-License-Identifier: Apache-2.0
"""The mean over devices: the same bits however lanes are grouped, and the value of a plain mean."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from splitee_server.learning.averages import average_by_name
from splitee_server.learning.lanes import LANES, in_order, lane_of
from splitee_server.learning.means import Rule
from splitee_server.learning.reduction import LaneSums, Partial

Holders = dict[str, dict[str, Tensor]]

fleets = st.dictionaries(st.text(min_size=1, max_size=8), st.integers(1, 1 << 40), min_size=1, max_size=40)


def holders(devices: dict[str, int], seed: int) -> Holders:
    """Every device holds `last`, some hold `first`; the sum of the values depends on its order."""
    generator = torch.Generator().manual_seed(seed)
    found: Holders = {}
    for device in sorted(devices):
        values = torch.randn(2, 5, generator=generator) * 10.0 ** torch.randint(
            -6, 6, (2, 5), generator=generator
        )
        found[device] = {"last": values[0]}
        if lane_of(device) % 3:
            found[device]["first"] = values[1]
    return found


def summed(held: Holders, weights: dict[str, int], first: int, end: int) -> LaneSums:
    sums = LaneSums(first)
    for device in in_order(device for device in held if first <= lane_of(device) < end):
        sums.add(device, held[device], weights[device])
    return sums


def means_in_groups(held: Holders, weights: dict[str, int], bounds: list[int]) -> dict[str, Tensor]:
    """The means if each group of lanes between two `bounds` is summed separately."""
    first, *others = [summed(held, weights, start, end) for start, end in pairwise(bounds)]
    for other in others:
        first.merge(other.partials())
    return first.means()


@pytest.mark.slow(2)
@given(fleets, st.integers(0, 1 << 20), st.lists(st.integers(1, LANES - 1), unique=True, max_size=6))
@settings(deadline=None)
def test_mean_has_the_same_bits_however_its_lanes_are_grouped(
    weights: dict[str, int], seed: int, cuts: list[int]
) -> None:
    held = holders(weights, seed)
    alone = means_in_groups(held, weights, [0, LANES])
    for bounds in ([0, 32, 64], [0, 16, 32, 48, 64], [0, 21, 42, 64], [0, *sorted(cuts), 64]):
        grouped = means_in_groups(held, weights, bounds)
        assert grouped.keys() == alone.keys()
        assert all(torch.equal(grouped[name], alone[name]) for name in alone)
    at_once = average_by_name(held, weights)
    assert all(torch.equal(at_once[name], alone[name].float()) for name in alone)


@pytest.mark.slow(2)
@given(fleets, st.integers(0, 1 << 20))
@settings(deadline=None)
def test_mean_of_lane_sums_is_the_plain_weighted_mean(weights: dict[str, int], seed: int) -> None:
    held = holders(weights, seed)
    for name, mean in means_in_groups(held, weights, [0, LANES]).items():
        devices = [device for device in held if name in held[device]]
        values = np.stack([held[device][name].double().numpy() for device in devices])
        counts = np.array([weights[device] for device in devices], dtype=np.float64)
        largest = np.average(np.abs(values), axis=0, weights=counts)
        difference = np.abs(mean.numpy() - np.average(values, axis=0, weights=counts))
        assert (difference <= 1e-12 * largest).all()


def test_weights_given_by_tensor_yield_the_mean_with_bounded_shares() -> None:
    weights = {"a": 1 << 30, "b": 3, "c": 1}
    held = holders(weights, 1)
    rule = Rule(largest_share=0.5)
    shares = {
        name: rule.shares(weights, [device for device in held if name in held[device]])
        for name in ("first", "last")
    }
    sums = LaneSums()
    for device in in_order(held):
        sums.add(device, held[device], {name: shares[name][device] for name in held[device]})
    found, expected = sums.means(), average_by_name(held, weights, rule)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name].float(), expected[name]) for name in expected)


def test_average_is_the_same_in_any_order_of_devices() -> None:
    weights = {f"pi-{number}": number + 1 for number in range(50)}
    held = holders(weights, 2)
    names = list(held)
    random.Random(0).shuffle(names)
    shuffled = average_by_name({device: held[device] for device in names}, weights)
    assert all(torch.equal(tensor, shuffled[name]) for name, tensor in average_by_name(held, weights).items())


def test_device_or_lane_out_of_order_is_refused() -> None:
    one, other = in_order(["a", "b"])
    sums = LaneSums()
    sums.add(other, {"x": torch.ones(1)}, 1)
    with pytest.raises(ValueError, match="comes after"):
        sums.add(one, {"x": torch.ones(1)}, 1)
    with pytest.raises(ValueError, match="comes after"):
        sums.add(other, {"x": torch.ones(1)}, 1)
    with pytest.raises(ValueError, match="are next, these are from 0 on"):
        sums.merge([Partial(0, 1)])
    with pytest.raises(ValueError, match="are next, these are from 64 on"):
        sums.merge([Partial(64, 1)])
    with pytest.raises(ValueError, match="all 64 lanes, not from lane 32 on"):
        LaneSums(32).means()
