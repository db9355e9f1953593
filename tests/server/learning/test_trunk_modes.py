# SPDX-License-Identifier: Apache-2.0
"""Trunks whose graph differs between training and evaluation, as with functional dropout."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splitee.networks.split import SplitNetwork
from splitee.protocol.run_spec import RunSpec
from splitee_server.learning.fleet_model import Contribution, FleetModel

STRATEGIES = pytest.mark.parametrize("strategy", ["sequential", "averaging", "data-parallel"])
FEATURES = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(8) % 4


class FunctionalDropout(nn.Module):
    """Three layers; dropout is a call that reads the mode, not a module."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.second(self.first(images.flatten(1)).relu()).relu()
        logits: Tensor = self.third(F.dropout(hidden, 0.5, training=self.training))
        return logits


def fleet(strategy: str) -> FleetModel:
    """A model with two devices of the same cut."""
    spec = RunSpec(
        protocol=1,
        run="r",
        network="made-up",
        num_classes=4,
        rounds=5,
        strategy=strategy,
        client_averaging="none",
        trunk_learning_rate=0.1,
    )
    torch.manual_seed(1)
    network = SplitNetwork("made-up", FunctionalDropout(), num_classes=4, input_shape=(3, 2, 2))
    model = FleetModel(spec, network)
    for device in ("a", "b"):
        model.join(device, 1, 8)
    return model


def train(model: FleetModel, number: int, *devices: str) -> None:
    for device in devices:
        model.train(device, FEATURES, LABELS, round_number=number, step=0, steps=1)


@STRATEGIES
def test_evaluation_after_each_round_is_without_dropout(strategy: str) -> None:
    model = fleet(strategy)
    for number in (1, 2, 3):
        train(model, number, "a", "b")
        model.commit(number, {"a": Contribution(), "b": Contribution()})
        assert torch.equal(model.logits("a", FEATURES), model.logits("a", FEATURES))


@STRATEGIES
def test_prediction_between_two_steps_leaves_dropout_on_in_training(strategy: str) -> None:
    """As for a device that a round leaves out, whose loss is computed all the same."""
    models = [fleet(strategy) for _ in range(2)]
    for model in models:
        model.train("a", FEATURES, LABELS, round_number=1, step=0, steps=2)
        if model is models[1]:
            model.logits("b", FEATURES)
        model.train("a", FEATURES, LABELS, round_number=1, step=1, steps=2)
        model.commit(1, {"a": Contribution()})
    plain, interrupted = (model.trunk_weights() for model in models)
    assert all(torch.equal(plain[name], tensor) for name, tensor in interrupted.items())
