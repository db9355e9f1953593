# SPDX-License-Identifier: Apache-2.0
"""Training of trunks through the exits of the fleet too, compared with a step computed by hand."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splitee.networks.split import build_network
from splitee.protocol.run_spec import RunSpec
from splitee.training.learning_rate import learning_rate, set_rate
from splitee.training.optimizer import make_optimizer
from splitee.training.state import pack_state, unpack_state, weights_digest
from splitee.training.weights import client_model
from splitee_server.learning.fleet_model import Contribution, FleetModel

CUTS = {"a": 1, "b": 2, "c": 3}
NETWORK = build_network("tiny_networks:steady", num_classes=10)


def spec(strategy: str, weight: float, exit_cuts: tuple[int, ...] = (1, 2, 3)) -> RunSpec:
    return RunSpec(
        protocol=1,
        run="r",
        network="tiny_networks:steady",
        num_classes=10,
        rounds=2,
        strategy=strategy,
        exits="fleet",
        exit_cuts=exit_cuts,
        settled=True,
        deep_supervision=weight,
    )


def fleet(run: RunSpec) -> FleetModel:
    model = FleetModel(run, copy.deepcopy(NETWORK))
    for device, cut in CUTS.items():
        model.join(device, cut, 20)
    return model


def batch(device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(CUTS[device])
    shape = NETWORK.stages[CUTS[device] - 1].feature_shape
    return torch.randn(8, *shape, generator=generator), torch.randint(0, 10, (8,), generator=generator)


def step(model: FleetModel, device: str) -> float:
    return model.train(device, *batch(device), round_number=1, step=0, steps=4)


@pytest.mark.parametrize("strategy", ["sequential", "averaging"])
@pytest.mark.parametrize("device", CUTS)
def test_step_minimizes_trunk_loss_plus_weighted_exit_losses(strategy: str, device: str) -> None:
    run, network = spec(strategy, 0.5), copy.deepcopy(NETWORK)
    model = fleet(run)
    loss = step(model, device)
    stages = [network.stage(index).train() for index in range(CUTS[device] + 1, network.num_layers + 1)]
    whole = nn.ModuleList(stages)
    features, labels = batch(device)
    losses = []
    for at, stage in enumerate(stages, start=CUTS[device] + 1):
        features = stage(features)
        if at < network.num_layers:
            exit_head = client_model(network, at, run)["exit"].train()
            losses.append(0.5 * F.cross_entropy(exit_head(features), labels))
    end = F.cross_entropy(features, labels)
    optimizer = make_optimizer(whole.parameters(), run)
    set_rate(optimizer, learning_rate(run, 1, 0, 4))
    torch.stack([end, *losses]).sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert loss == pytest.approx(end.item(), rel=1e-5), "what is told is the end's"
    expected = network.trunk(CUTS[device]).state_dict()
    own = f"{device}/" if strategy == "averaging" else ""
    for name, tensor in expected.items():
        torch.testing.assert_close(model.trunk_weights()[own + name], tensor)


def test_step_trains_through_the_committed_exits_without_changing_them() -> None:
    run = spec("sequential", 0.5)
    model, again = fleet(run), fleet(run)
    for device in CUTS:
        step(model, device)
    sent = {
        device: {
            name: tensor + torch.rand(tensor.shape, generator=torch.Generator().manual_seed(1))
            for name, tensor in client_model(NETWORK, cut, run).state_dict().items()
            if tensor.is_floating_point()
        }
        for device, cut in CUTS.items()
    }
    model.commit(1, {device: Contribution(weights) for device, weights in sent.items()})
    held = {device: weights_digest(model.client(device)) for device in CUTS}
    again.load(unpack_state(pack_state(model.state())))
    for one in (model, again):
        one.train("a", *batch("a"), round_number=2, step=0, steps=4)
        assert {device: weights_digest(one.client(device)) for device in CUTS} == held
    assert weights_digest(model.trunk_weights()) == weights_digest(again.trunk_weights())


def test_deep_supervision_has_no_effect_without_fleet_exits() -> None:
    plain, supervised = fleet(spec("sequential", 0.0, ())), fleet(spec("sequential", 0.5, ()))
    for device in CUTS:
        assert step(plain, device) == step(supervised, device)
    assert weights_digest(plain.trunk_weights()) == weights_digest(supervised.trunk_weights())


@pytest.mark.parametrize("strategy", ["sequential", "averaging"])
def test_supervised_trunk_predicts_like_one_without_exits(strategy: str) -> None:
    features, _ = batch("a")
    supervised, plain = (fleet(spec(strategy, weight)).logits("a", features) for weight in (0.5, 0.0))
    assert supervised.shape == (8, 10)
    assert torch.equal(supervised, plain)
