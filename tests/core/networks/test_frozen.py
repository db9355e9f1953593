# SPDX-License-Identifier: Apache-2.0
"""Frozen stages: they compute in training as in evaluation, and do not change."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splitee.errors import NetworkError
from splitee.networks.frozen import set_training
from splitee.networks.split import SplitNetwork, build_network

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


class Dropping(nn.Module):
    """Three stages, of which the first two use functional dropout instead of a module."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, stride=4), nn.Conv2d(4, 8, 3, stride=4)
        self.classifier = nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.dropout(self.first(images).relu(), 0.5, self.training)
        hidden = F.dropout(self.second(hidden).relu(), 0.5, self.training)
        logits: Tensor = self.classifier(hidden.mean((2, 3)))
        return logits


def tiny() -> SplitNetwork:
    return build_network("tiny_networks:tiny", num_classes=3)


def test_frozen_stages_keep_weights_and_statistics_without_dropout() -> None:
    network = tiny()
    network.freeze(3)  # with both BatchNorms and the dropout
    client, trunk = network.client(3), network.trunk(1)
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    expected = client.eval()(IMAGES)
    set_training(client, network.frozen_modules)
    set_training(trunk, network.frozen_modules)
    assert torch.equal(client(IMAGES), expected)
    loss = trunk(network.client(1)(IMAGES)).square().sum()
    loss.backward()
    for name, parameter in network.module.named_parameters():
        assert (parameter.grad is None) == (name in network.frozen_keys), name
    for name in network.frozen_keys:
        assert torch.equal(network.module.state_dict()[name], before[name]), name


def test_stages_that_are_not_frozen_train() -> None:
    network = tiny()
    network.freeze(1)
    client = network.client(2)
    set_training(client, network.frozen_modules)
    statistics = network.module.state_dict()["second.1.running_mean"].clone()
    client(IMAGES).square().sum().backward()
    assert not torch.equal(network.module.state_dict()["second.1.running_mean"], statistics)
    with_gradient = {n for n, parameter in network.module.named_parameters() if parameter.grad is not None}
    assert with_gradient == {name for name in network.stage_keys(2, 2) if name.endswith(("weight", "bias"))}


def test_functional_dropout_is_off_in_frozen_stages_and_on_behind_them() -> None:
    network = SplitNetwork("dropping", Dropping(3), num_classes=3, input_shape=(3, 32, 32))
    last = network.num_layers - 1
    network.freeze(1)
    both, frozen = network.client(last), network.client(1)
    for part in (both, frozen):
        set_training(part, network.frozen_modules)
    assert torch.equal(frozen(IMAGES), network.client(1).eval()(IMAGES))
    assert not torch.equal(both(IMAGES), both(IMAGES))


@pytest.mark.parametrize("count", [4, 5])
def test_freezing_beyond_the_deepest_cut_is_refused(count: int) -> None:
    with pytest.raises(NetworkError, match=r"--freeze \d is beyond the deepest cut.* up to stage 3"):
        tiny().freeze(count)
