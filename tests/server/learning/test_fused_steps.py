# SPDX-License-Identifier: Apache-2.0
"""The fused step in trunks whose stages are not all trained from the first batch on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from splitee.networks.split import build_network
from splitee.protocol.run_spec import RunSpec
from splitee_server.learning.strategies.base import Strategy
from splitee_server.learning.strategies.registry import make_strategy

CUTS = {"deep": 3, "shallow": 1}
RTOL, ATOL = 1e-4, 1e-6  # the last bits differ


class Trained:
    """A strategy whose devices have trained, the deepest cut first."""

    def __init__(self, kind: str, **settings: Any) -> None:
        run = RunSpec(
            protocol=1,
            run="r",
            network="tiny_networks:tiny",
            num_classes=5,
            rounds=2,
            strategy=kind,
            batch_size=8,
            **settings,
        )
        self.network = build_network(run.network, num_classes=5, seed=3)
        self.strategy: Strategy = make_strategy(self.network, run)
        self.cuts = dict(CUTS)
        for device, cut in CUTS.items():
            self.strategy.join(device, cut)

    def step(self, device: str, number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        shape = self.network.stages[self.cuts[device] - 1].feature_shape
        features, labels = torch.randn(8, *shape, generator=generator), torch.arange(8) % 5
        self.strategy.train(device, features, labels, round_number=1, step=number, steps=4)

    def move(self, device: str, cut: int, own: dict[str, Tensor]) -> None:
        self.strategy.move(device, cut, own)
        self.cuts[device] = cut

    def weights(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.strategy.weights().items()}


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.0}])
@pytest.mark.parametrize("kind", ["sequential", "averaging"])
def test_fused_step_trains_stages_reached_later_like_the_plain_step(
    kind: str, settings: dict[str, Any]
) -> None:
    fused, plain = Trained(kind, fused=True, **settings), Trained(kind, **settings)
    before = fused.weights()
    for one in (fused, plain):
        one.step("deep", 0)
    reached = set(fused.strategy.trunk("deep").state_dict())
    if kind == "sequential":
        now = fused.weights()
        assert all(torch.equal(now[name], before[name]) for name in now.keys() - reached)
    for one in (fused, plain):
        for number, device in enumerate(["shallow", "deep", "shallow"], start=1):
            one.step(device, number)
    torch.testing.assert_close(fused.weights(), plain.weights(), rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("fused", [True, False])
def test_stage_that_returns_to_the_trunk_has_no_momentum_of_its_earlier_time_there(fused: bool) -> None:
    """It leaves the trunk when its device moves to a deeper cut; a fleet without momentum is the measure."""
    one, fresh = returned(fused=fused), Trained("sequential", fused=fused)
    fresh.strategy.load(one.strategy.state() | {"optimizer": fresh.strategy.state()["optimizer"]})
    fresh.cuts = dict(one.cuts)
    for each in (one, fresh):
        each.step("shallow", 3)
    found, expected = one.weights(), fresh.weights()
    stayed = set(one.strategy.trunk("deep").state_dict())
    came = found.keys() - stayed
    assert came
    assert all(torch.equal(found[name], expected[name]) for name in came)
    assert not all(torch.equal(found[name], expected[name]) for name in stayed), "these have momentum"


def test_fused_step_equals_the_plain_step_after_a_stage_returns_to_the_trunk() -> None:
    trained = [returned(fused=fused) for fused in (True, False)]
    for one in trained:
        one.step("shallow", 3)
    torch.testing.assert_close(trained[0].weights(), trained[1].weights(), rtol=RTOL, atol=ATOL)


def returned(*, fused: bool) -> Trained:
    """A stage was in the trunk of a device at cut 1, left it, and is back with the device's weights."""
    one = Trained("sequential", fused=fused)
    own = one.strategy.trunk("shallow").state_dict()
    learnt = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in own.items()}
    one.step("shallow", 0)
    one.move("shallow", 3, learnt)
    one.step("shallow", 1)
    one.move("shallow", 1, learnt)
    return one
