# SPDX-License-Identifier: Apache-2.0
"""Moves of a device to another cut: every stage keeps its weights on either side of the cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from splitee.networks.split import SplitNetwork, build_for
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import PROTOCOL
from splitee.training.weights import CLIENT, EXIT, EXITS, client_model, exits_by_cut
from splitee_server.learning.client_networks import ClientNetworks
from splitee_server.learning.strategies.base import Strategy
from splitee_server.learning.strategies.registry import make_strategy

MOVES = [(old, new) for old in (1, 2, 3) for new in (1, 2, 3) if old != new]
STRATEGIES = ("sequential", "averaging")


def spec(strategy: str, **settings: Any) -> RunSpec:
    settings.setdefault("client_averaging", "none")
    return RunSpec(
        protocol=PROTOCOL,
        run="r",
        network="tiny_networks:tiny",
        num_classes=10,
        rounds=5,
        seed=1,
        strategy=strategy,
        **settings,
    )


class Fleet:
    """Devices whose trunks and client networks have learnt, so that no two tensors are alike."""

    def __init__(self, cuts: dict[str, int], run: RunSpec) -> None:
        torch.manual_seed(7)
        self.run = run
        self.cuts = dict(cuts)
        self.network: SplitNetwork = build_for(run)
        self.strategy: Strategy = make_strategy(self.network, run)
        self.clients = ClientNetworks(run, self.network, self.strategy)
        for device, cut in cuts.items():
            self.strategy.join(device, cut)
        self.train()
        self.end_round(*cuts)

    def train(self) -> None:
        for step in range(3):
            for device, cut in sorted(self.cuts.items()):
                features = torch.randn(8, *self.network.stages[cut - 1].feature_shape)
                labels = torch.randint(0, 10, (8,))
                self.strategy.train(device, features, labels, round_number=1, step=step, steps=3)

    def end_round(self, *devices: str) -> None:
        samples = dict.fromkeys(devices, 64)
        self.strategy.aggregate(samples)
        received = {device: self._learnt(self.cuts[device]) for device in devices}
        self.clients.commit(received, self.cuts, samples)

    def move(self, **moves: int) -> None:
        self.clients.move(moves, self.cuts)
        self.cuts.update(moves)

    def client(self, device: str) -> dict[str, Tensor]:
        held: dict[str, Tensor] = self.clients.state()[device]
        return held

    def whole(self, device: str) -> dict[str, Tensor]:
        """The present network of this device: its stages and those of its trunk."""
        own = {n.removeprefix(CLIENT): t for n, t in self.client(device).items() if n.startswith(CLIENT)}
        trunk = self.strategy.tensors(device)
        assert not own.keys() & trunk.keys()
        return {name: tensor.clone() for name, tensor in {**own, **trunk}.items()}

    def exit(self, device: str) -> dict[str, Tensor]:
        return {name: t.clone() for name, t in self.client(device).items() if name.startswith(EXIT)}

    def _learnt(self, cut: int) -> dict[str, Tensor]:
        fresh = client_model(self.network, cut, self.run).state_dict()
        return {name: (t + 1 + torch.rand(t.shape)).to(t.dtype) for name, t in fresh.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("old", "new"), MOVES)
def test_move_keeps_the_weights_of_every_stage_bit_for_bit(strategy: str, old: int, new: int) -> None:
    """Stages between the cuts move, with statistics of BatchNorm; no other device's network changes."""
    fleet = Fleet({"mover": old, "other": 3}, spec(strategy))
    before = {device: fleet.whole(device) for device in fleet.cuts}
    other = fleet.client("other")
    fleet.move(mover=new)
    names = set(fleet.network.module.state_dict())
    assert any("running_var" in name for name in names)
    assert set(before["mover"]) == names
    assert all(same(before[device], fleet.whole(device)) for device in fleet.cuts)
    assert same(other, fleet.client("other"))
    assert set(fleet.client("mover")) == set(client_model(fleet.network, new, fleet.run).state_dict())
    fleet.train()  # at the new cut


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_move_is_restored_from_the_saved_state(strategy: str) -> None:
    fleet = Fleet({"mover": 1, "other": 2}, spec(strategy))
    fleet.move(mover=3)
    again = Fleet({"mover": 3, "other": 2}, spec(strategy))
    again.strategy.load(fleet.strategy.state())
    again.clients.load(fleet.clients.state())
    assert same(fleet.whole("mover"), again.whole("mover"))
    assert fleet.clients.digest("mover") == again.clients.digest("mover")


def test_shared_trunk_keeps_the_stages_that_another_device_trains() -> None:
    fleet = Fleet({"mover": 3, "other": 2}, spec("sequential"))
    mover, other = fleet.whole("mover"), fleet.whole("other")
    fleet.move(mover=1)
    now = fleet.whole("mover")
    for stage, source in ((1, mover), (2, mover), (3, other), (4, other)):
        for name in fleet.network.stage_keys(stage, stage):
            assert torch.equal(now[name], source[name]), name
    assert same(other, fleet.whole("other"))


def test_moved_device_takes_the_exits_trained_at_its_new_cut() -> None:
    """Exits are trained by devices at that cut or deeper; those that it trained itself stay with it."""
    run = spec("sequential", client_averaging="layerwise", exits="fleet", exit_cuts=(1, 2, 3))
    fleet = Fleet({"a": 1, "b": 3, "c": 3}, run)
    at = exits_by_cut(fleet.client("b"), 3)
    first = exits_by_cut(fleet.client("a"), 1)
    assert same(first, {name: at[name] for name in first}), "it is averaged over all who train it"
    fleet.move(a=2, b=1)
    assert same(exits_by_cut(fleet.client("a"), 2), {n: t for n, t in at.items() if n[len(EXITS)] in "12"})
    assert same(exits_by_cut(fleet.client("b"), 1), {n: t for n, t in at.items() if n[len(EXITS)] == "1"})
    alone = Fleet({"a": 3}, spec("sequential", exits="fleet", exit_cuts=(1, 2, 3)))
    before = exits_by_cut(alone.client("a"), 3)
    alone.move(a=2)
    after = exits_by_cut(alone.client("a"), 2)
    assert same(after, {name: before[name] for name in after})


def test_devices_that_exchange_cuts_take_the_exits_of_their_new_cuts() -> None:
    fleet = Fleet({"a": 1, "b": 2, "c": 3}, spec("averaging", client_averaging="same-cut"))
    exits = {device: fleet.exit(device) for device in fleet.cuts}
    fleet.move(a=2, b=1)
    assert same(fleet.exit("a"), exits["b"])
    assert same(fleet.exit("b"), exits["a"])
    fleet.move(a=3, c=2)
    assert same(fleet.exit("a"), exits["c"])
    assert not same(fleet.exit("c"), exits["c"])


def test_moved_device_starts_with_a_fresh_exit_without_averaging() -> None:
    fleet = Fleet({"a": 1, "b": 2}, spec("averaging"))
    fleet.move(a=2)
    fresh = client_model(build_for(fleet.run), 2, fleet.run).state_dict()
    assert same(fleet.exit("a"), {name: t for name, t in fresh.items() if name.startswith(EXIT)})


def test_network_of_a_moved_device_is_held_until_the_device_has_trained() -> None:
    fleet = Fleet({"mover": 1, "other": 2}, spec("averaging"))
    fleet.move(mover=3)
    moved, digest = fleet.client("mover"), fleet.clients.digest("mover")
    fleet.end_round("other")
    assert same(fleet.client("mover"), moved)
    assert fleet.clients.digest("mover") == digest
    fleet.clients.commit({}, fleet.cuts, {"mover": 64, "other": 64})  # it has trained and has its own now
    assert "mover" not in fleet.clients
