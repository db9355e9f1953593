# SPDX-License-Identifier: Apache-2.0
"""Momentum of the averages of a round, from the changes of earlier commits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from averaged_models import STRATEGIES, Fleet
from torch import Tensor

from splitee.networks.split import build_network
from splitee.protocol.run_spec import RunSpec
from splitee.training.weights import CLIENT, client_model, exits_by_cut
from splitee_server.learning.fleet_model import Contribution, FleetModel
from splitee_server.learning.server_momentum import ServerMomentum


def tensors(weight: float, mean: float = 0.0) -> dict[str, Tensor]:
    return {
        "fc.weight": torch.full((2,), weight),
        "bn.running_mean": torch.full((2,), mean),
        "bn.num_batches_tracked": torch.tensor(7),
    }


def test_momentum_carries_the_change_of_a_commit_into_the_next() -> None:
    momentum = ServerMomentum(0.5)
    committed: dict[str, Tensor] = {}
    found = []
    for mean in (1.0, 3.0, 3.0, 3.0):
        means = tensors(mean)
        committed = means | momentum.apply(means, committed)
        found.append(committed["fc.weight"][0].item())
    # first: 1. then v = 2: 3. then v = 0 + 1: 4. then v = -1 + 0.5: 3.5
    assert found == [1.0, 3.0, 4.0, 3.5]


def test_momentum_does_not_apply_to_statistics() -> None:
    carried = ServerMomentum(0.5).apply(tensors(2.0, mean=3.0), tensors(1.0, mean=1.0))
    assert carried.keys() == {"fc.weight"}


def test_zero_momentum_changes_no_weights_and_keeps_no_state() -> None:
    momentum = ServerMomentum(0.0)
    assert momentum.apply(tensors(2.0), tensors(1.0)) == {}
    assert momentum.state() == {}


@pytest.mark.parametrize("resumed", [False, True])
def test_momentum_continues_in_a_resumed_run(resumed: bool) -> None:
    momentum = ServerMomentum(0.5)
    momentum.apply(tensors(2.0), tensors(1.0))
    if resumed:
        state = momentum.state()
        momentum = ServerMomentum(0.5)
        momentum.load(state)
    assert momentum.apply(tensors(2.0), tensors(2.0))["fc.weight"].tolist() == [2.5, 2.5]


CUTS = {"a": 1, "b": 2, "c": 3}


def committed(strategy: Any, **settings: Any) -> list[dict[str, dict[str, Tensor]]]:
    """Tensors of each device and each trunk after each of three rounds, by the network's names.

    Devices send the initial client networks plus the product of their cut and the round's number.
    """
    run = RunSpec(
        protocol=1, run="r", network="tiny_networks:steady", num_classes=10, rounds=3, strategy=strategy,
        exits="fleet", exit_cuts=(1, 2, 3), settled=True, **settings,
    )  # fmt: skip
    network = build_network("tiny_networks:steady", num_classes=10)
    model = FleetModel(run, network)
    found = []
    for device, cut in CUTS.items():
        model.join(device, cut, 8)
    for number in range(1, 4):
        for device, cut in CUTS.items():
            features = torch.randn(8, *network.stages[cut - 1].feature_shape)
            model.train(device, features, torch.arange(8), round_number=number, step=0, steps=1)
        model.commit(
            number,
            {
                device: Contribution(
                    {
                        name: tensor + cut * number if tensor.is_floating_point() else tensor.clone()
                        for name, tensor in client_model(network, cut, run).state_dict().items()
                    }
                )
                for device, cut in CUTS.items()
            },
        )
        held = {}
        for device, cut in CUTS.items():
            own = model.client(device)
            stages = {n.removeprefix(CLIENT): t.clone() for n, t in own.items() if n.startswith(CLIENT)}
            held[device] = {**stages, **{n: t.clone() for n, t in exits_by_cut(own, cut).items()}}
        held["trunks"] = {name: tensor.clone() for name, tensor in model.trunk_weights().items()}
        found.append(held)
    return found


@pytest.mark.parametrize("strategy", ["sequential", "averaging"])
def test_stage_is_the_same_in_every_network_and_trunk_that_holds_it(strategy: str) -> None:
    torch.manual_seed(1)
    for held in committed(strategy, server_momentum=0.5):
        everywhere: dict[str, Tensor] = {}
        trunks = {name.rpartition("/")[2]: tensor for name, tensor in held.pop("trunks").items()}
        for tensors in (*held.values(), trunks):
            for name, tensor in tensors.items():
                if not name.endswith("num_batches_tracked"):
                    torch.testing.assert_close(tensor, everywhere.setdefault(name, tensor), rtol=0, atol=0)


@pytest.mark.parametrize("strategy", ["sequential", "averaging"])
def test_momentum_of_one_half_repeats_half_of_the_last_change(strategy: str) -> None:
    """The exit at cut 1 moves by 2 a round on average; the first commit has nothing to carry on from."""
    torch.manual_seed(1)
    carried = committed(strategy, server_momentum=0.5)
    torch.manual_seed(1)
    plain = committed(strategy)
    for further, one, other in zip((0.0, 0.0, 1.0), carried, plain, strict=True):
        change = one["a"]["exits.1.linear.weight"] - other["a"]["exits.1.linear.weight"]
        torch.testing.assert_close(change, torch.full_like(change, further))


@pytest.mark.parametrize("resumed", [False, True])
@STRATEGIES
def test_momentum_is_measured_from_the_last_commit_after_a_round_without_a_device(
    strategy: str, resumed: bool
) -> None:
    """Device a, alone at its cut, keeps the network of the round before."""
    fleet = Fleet(strategy, server_momentum=0.5)
    fleet.commit(1, fleet.train(1))
    fleet.commit(2, fleet.train(2, "b", "c", "d"))
    if resumed:
        fleet = fleet.restarted()
    name = f"{CLIENT}first.0.weight"
    before = fleet.model.client("b")[name].clone()
    fleet.commit(3, fleet.train(3))
    change = fleet.model.state()["server_momentum"]["first.0.weight"]
    torch.testing.assert_close(fleet.model.client("b")[name], before + change)


@STRATEGIES
def test_stage_that_only_an_absent_device_holds_begins_without_momentum(strategy: str) -> None:
    """The network that is held for device d is older than the commit that momentum is measured from."""
    fleet, name = Fleet(strategy, server_momentum=0.5), "hidden.1.weight"
    fleet.commit(1, fleet.train(1))
    fleet.commit(2, fleet.train(2, "a", "b", "c"))
    fleet.commit(3, fleet.train(3))
    assert name not in fleet.model.state()["server_momentum"]
    before = fleet.model.client("d")[f"{CLIENT}{name}"].clone()
    fleet.commit(4, fleet.train(4))
    change = fleet.model.state()["server_momentum"][name]
    torch.testing.assert_close(fleet.model.client("d")[f"{CLIENT}{name}"], before + change)
