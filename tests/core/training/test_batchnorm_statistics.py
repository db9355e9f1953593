# SPDX-License-Identifier: Apache-2.0
"""BatchNorm's statistics computed again: means over batches; the network does not change."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from splitee.protocol.codecs import LARGEST
from splitee.protocol.run_spec import RunSpec
from splitee.training.batchnorm_statistics import (
    FreshStatistics,
    pooled,
    statistics_steps,
    unpooled,
)
from splitee.training.state import weights_digest
from splitee.training.weights import first_out_of_bounds


@pytest.fixture
def network() -> nn.Sequential:
    """Two layers of BatchNorm; the first is frozen, in evaluation mode."""
    torch.manual_seed(1)
    layers = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    layers[0].eval()
    return layers


def batches(count: int) -> list[Tensor]:
    return [2 + 3 * torch.randn(6, 3, 5, 5) for _ in range(count)]


def test_fresh_statistics_are_means_over_batches_and_keep_the_network(network: nn.Sequential) -> None:
    before, seen, fresh = weights_digest(network.state_dict()), batches(3), FreshStatistics(network)
    for batch in seen:
        with fresh.batch():
            network(batch)
    found = fresh.means()
    assert weights_digest(network.state_dict()) == before
    assert network[2].momentum == 0.1
    assert found.keys() == {"2.running_mean", "2.running_var"}
    inner = [network[1](network[0](batch)) for batch in seen]
    means = torch.stack([one.mean((0, 2, 3)) for one in inner]).mean(0)
    variances = torch.stack([one.var((0, 2, 3)) for one in inner]).mean(0)
    torch.testing.assert_close(found["2.running_mean"], means)
    torch.testing.assert_close(found["2.running_var"], variances)


def test_failed_forward_pass_keeps_network_and_statistics(network: nn.Sequential) -> None:
    before, fresh = weights_digest(network.state_dict()), FreshStatistics(network)
    with pytest.raises(RuntimeError), fresh.batch():
        network(torch.randn(6, 4, 5, 5))
    assert weights_digest(network.state_dict()) == before
    assert fresh.means() == {}


def test_averaged_statistics_of_devices_are_those_of_their_pooled_values() -> None:
    ours, theirs = torch.randn(100, 4, dtype=torch.float64), 5 + torch.randn(100, 4, dtype=torch.float64)
    sent = [
        pooled({"n.running_mean": one.mean(0), "n.running_var": one.var(0, unbiased=False)})
        for one in (ours, theirs)
    ]
    found = unpooled({name: (sent[0][name] + sent[1][name]) / 2 for name in sent[0]})
    together = torch.cat([ours, theirs])
    torch.testing.assert_close(found["n.running_mean"], together.mean(0))
    torch.testing.assert_close(found["n.running_var"], together.var(0, unbiased=False))


@pytest.mark.parametrize(
    ("mean", "variance", "is_fine"),
    [
        (LARGEST, LARGEST**2, True),
        (1.01 * LARGEST, 1.0, False),
        (0.0, 1.001 * LARGEST**2, False),
        (float("nan"), 1.0, False),
    ],
)
def test_statistics_out_of_bounds_are_detected(mean: float, variance: float, is_fine: bool) -> None:
    found = {"n.running_mean": torch.tensor([mean]), "n.running_var": torch.tensor([variance])}
    assert (first_out_of_bounds(found) is None) is is_fine


def test_short_round_limits_the_batches_of_statistics() -> None:
    spec = RunSpec(
        protocol=1, run="r", network="n", num_classes=2, rounds=1, batch_size=4, statistics_batches=4
    )
    assert [statistics_steps(spec, samples) for samples in (3, 12, 400)] == [1, 3, 4]
