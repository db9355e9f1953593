# SPDX-License-Identifier: Apache-2.0
"""An update that is too long is shortened in its direction; the others stay unchanged."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from splitee_server.learning.clipping import clip_updates, update_size


def network(weight: float, variance: float, size: int = 4) -> dict[str, Tensor]:
    return {
        "conv.weight": torch.full((size,), weight),
        "bn.running_var": torch.full((2,), variance),
        "bn.num_batches_tracked": torch.tensor(7),
    }


def starts(sizes: list[int]) -> dict[str, dict[str, Tensor]]:
    return {str(index): network(1.0, 1.0, size) for index, size in enumerate(sizes)}


def test_updates_within_the_multiple_of_the_median_stay_bit_for_bit() -> None:
    sent = {"0": network(1.1, 1.3), "1": network(1.2, 1.2), "2": network(0.8, 0.9)}
    before = copy.deepcopy(sent)
    clip_updates(sent, starts([4, 4, 4]), 2.0)
    for device, tensors in sent.items():
        assert all(torch.equal(tensors[name], before[device][name]) for name in tensors)


def test_longer_update_is_shortened_to_the_limit_in_its_own_direction() -> None:
    """Networks of different cuts have different numbers of weights: the mean over the weights counts."""
    sent = {"0": network(1.1, 1.1, 4), "1": network(1.2, 1.2, 400), "2": network(-99.0, 1.05, 40)}
    clip_updates(sent, starts([4, 400, 40]), 1.5)
    torch.testing.assert_close(sent["2"]["conv.weight"], torch.full((40,), 1 - 1.5 * 0.2))
    torch.testing.assert_close(sent["2"]["bn.running_var"], torch.full((2,), 1.05))
    assert sent["2"]["bn.num_batches_tracked"] == 7


def test_statistics_are_clipped_separately_and_variances_stay_positive() -> None:
    sent = {"0": network(1.1, 0.9), "1": network(1.1, 1.1), "2": network(1.1, 1e9), "3": network(1.1, 0.0)}
    clip_updates(sent, starts([4] * 4), 1.0)
    limit = (0.1 + 1.0) / 2  # the median of 0.1, 0.1, 1 and a huge value
    torch.testing.assert_close(sent["2"]["bn.running_var"], torch.full((2,), 1 + limit))
    torch.testing.assert_close(sent["3"]["bn.running_var"], torch.full((2,), 1 - limit))
    assert all(tensors["conv.weight"].allclose(torch.tensor(1.1)) for tensors in sent.values())


def test_update_size_is_its_root_mean_square() -> None:
    start, trained = network(1.0, 1.0), network(4.0, 1.0)
    assert update_size(trained, start, ["conv.weight"]) == 3
    assert update_size(trained, start, []) == 0
