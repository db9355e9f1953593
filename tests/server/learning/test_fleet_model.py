# SPDX-License-Identifier: Apache-2.0
"""What a commit does to the models of a fleet, on networks small enough to be averaged by hand."""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from splitee.networks.split import build_network
from splitee.protocol.run_spec import RunSpec
from splitee.training.batchnorm_statistics import is_statistic
from splitee.training.state import COUNTER, pack_state, unpack_state
from splitee.training.weights import CLIENT, EXIT, client_model
from splitee_server.learning.fleet_model import Contribution, FleetModel
from splitee_server.learning.lanes import in_order
from splitee_server.learning.strategies.base import Untrainable

CUTS = {"a": 1, "b": 2, "c": 2, "d": 3}
IMAGES = {"a": 20, "b": 5, "c": 15, "d": 10}  # each device's, a batch
STEPS = 2  # batches in a round
SAMPLES = {device: STEPS * count for device, count in IMAGES.items()}  # that the trunk trains on in a round
BATCH = 20  # at most
NETWORK = build_network("tiny_networks:tiny", num_classes=10)
STRATEGIES = pytest.mark.parametrize("strategy", ["sequential", "averaging"])


@cache
def initial(cut: int) -> dict[str, Tensor]:
    """A client network and exit that has learnt nothing, by name."""
    weights: dict[str, Tensor] = client_model(NETWORK, cut, spec("sequential")).state_dict()
    return weights


def spec(strategy: str, averaging: Any = "layerwise", **settings: Any) -> RunSpec:
    return RunSpec(
        protocol=1,
        run="r",
        network="tiny_networks:tiny",
        num_classes=10,
        rounds=5,
        strategy=strategy,
        batch_size=BATCH,
        steps=STEPS,
        client_averaging=averaging,
        **settings,
    )


class Fleet:
    """A model, and devices that make up what they send."""

    def __init__(
        self, strategy: str, averaging: Any = "layerwise", cuts: Mapping[str, int] = CUTS, **settings: Any
    ) -> None:
        self.spec = spec(strategy, averaging, **settings)
        self.cuts = dict(cuts)
        self.model = FleetModel(self.spec, copy.deepcopy(NETWORK))
        for device, cut in cuts.items():
            self.model.join(device, cut, IMAGES[device])

    def train(self, number: int, *devices: str) -> dict[str, dict[str, Tensor]]:
        """A round of these devices, all by default; the client networks that they send after it."""
        generator = torch.Generator().manual_seed(number)
        sent = {}
        for device in devices or self.cuts:
            for step in range(STEPS):
                features = self.features(device, generator, IMAGES[device])
                labels = torch.randint(0, 10, (len(features),), generator=generator)
                self.model.train(device, features, labels, round_number=number, step=step, steps=STEPS)
            sent[device] = {
                name: (tensor + torch.rand(tensor.shape, generator=generator)).to(tensor.dtype)
                for name, tensor in initial(self.cuts[device]).items()
            }
        return sent

    def commit(self, number: int, sent: Mapping[str, dict[str, Tensor]], **moves: int) -> dict[str, int]:
        moved = self.model.commit(
            number,
            {device: Contribution(weights, moves.get(device, 0)) for device, weights in sent.items()},
        )
        self.cuts.update(moved)
        return moved

    def features(self, device: str, generator: torch.Generator, count: int = BATCH) -> Tensor:
        return torch.randn(count, *self.model.feature_shape(self.cuts[device]), generator=generator)

    def trunk(self, device: str) -> dict[str, Tensor]:
        """A copy of the trunk that continues this device's client network."""
        network, weights = self.model.network, self.model.trunk_weights()
        names = network.stage_keys(self.cuts[device] + 1, network.num_layers)
        own = f"{device}/" if self.spec.strategy == "averaging" else ""
        return {name: weights[own + name].clone() for name in names}

    def whole(self, device: str, client: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A copy of the network as the device's images see it."""
        stages = {n.removeprefix(CLIENT): t.clone() for n, t in client.items() if n.startswith(CLIENT)}
        return {**stages, **self.trunk(device)}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def mean(holders: Mapping[str, Mapping[str, Tensor]], name: str) -> Any:
    """Over the devices that hold `name`, weighted by their samples."""
    devices = [device for device, tensors in holders.items() if name in tensors]
    values = [holders[device][name].double().numpy() for device in devices]
    return np.average(values, axis=0, weights=[SAMPLES[device] for device in devices])


@STRATEGIES
def test_layerwise_every_stage_becomes_the_mean_of_its_holders(strategy: str) -> None:
    fleet = Fleet(strategy)
    sent = fleet.train(1)
    before = {device: fleet.whole(device, client) for device, client in sent.items()}
    exits = {device: {n: t.clone() for n, t in sent[device].items() if n.startswith(EXIT)} for device in "bc"}
    assert fleet.commit(1, sent) == {}
    for device in CUTS:
        for name, tensor in fleet.whole(device, fleet.model.client(device)).items():
            if not name.endswith(COUNTER):
                np.testing.assert_allclose(tensor.numpy(), mean(before, name), rtol=1e-5, atol=1e-6)
    for name in exits["b"]:
        for device in "bc":
            held = fleet.model.client(device)[name].numpy()
            np.testing.assert_allclose(held, mean(exits, name), rtol=1e-5, atol=1e-6)


@STRATEGIES
def test_same_cut_averages_client_networks_and_leaves_trunks_to_the_strategy(strategy: str) -> None:
    fleet, alone = Fleet(strategy, "same-cut"), Fleet(strategy, "none")
    sent = fleet.train(1)
    alone.commit(1, alone.train(1))
    before = {device: {n: t.clone() for n, t in sent[device].items()} for device in sent}
    fleet.commit(1, sent)
    assert same(fleet.model.client("a"), before["a"])
    for name, tensor in fleet.model.client("c").items():
        if not name.endswith(COUNTER):
            expected = mean({device: before[device] for device in "bc"}, name)
            np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert same(fleet.model.trunk_weights(), alone.model.trunk_weights())


@STRATEGIES
def test_a_missing_device_takes_the_average_of_its_cut_or_keeps_its_network(strategy: str) -> None:
    fleet = Fleet(strategy)
    fleet.commit(1, fleet.train(1))
    only_one_at_its_cut = dict(fleet.model.client("d"))
    fleet.commit(2, fleet.train(2, "a", "b"))
    assert same(fleet.model.client("c"), fleet.model.client("b"))
    assert fleet.model.digest("c") == fleet.model.digest("b")
    assert same(fleet.model.client("d"), only_one_at_its_cut)


@STRATEGIES
def test_what_is_held_for_a_device_ends_with_the_next_round_that_it_finishes(strategy: str) -> None:
    fleet = Fleet(strategy, "none")
    fleet.commit(1, fleet.train(1), a=2)
    moved, digest = dict(fleet.model.client("a")), fleet.model.digest("a")
    fleet.model.commit(2, dict.fromkeys("bcd", Contribution()))
    assert same(fleet.model.client("a"), moved) and fleet.model.digest("a") == digest
    assert not fleet.model.holds("b")
    fleet.model.commit(3, {"a": Contribution()})
    assert not fleet.model.holds("a")


@STRATEGIES
def test_a_late_joiner_starts_from_the_averages(strategy: str) -> None:
    fleet = Fleet(strategy)
    fleet.commit(1, fleet.train(1))
    fleet.model.join("late", 2, 10)
    fleet.model.adopt("late")
    assert same(fleet.model.client("late"), fleet.model.client("b"))
    features = fleet.features("b", torch.Generator().manual_seed(0))
    assert torch.equal(fleet.model.predict("late", features), fleet.model.predict("b", features))
    alone = Fleet(strategy, "none")
    alone.commit(1, alone.train(1))
    alone.model.join("late", 2, 10)
    alone.model.adopt("late")
    assert alone.model.holds("b") and not alone.model.holds("late")


@STRATEGIES
@pytest.mark.parametrize(("old", "new"), [(1, 3), (3, 1), (2, 3)])
def test_a_move_keeps_the_weights_of_every_stage(strategy: str, old: int, new: int) -> None:
    """Which the commit has averaged before, as in a fleet where nobody moves."""
    cuts = {"a": old, "b": 3}
    fleet, unmoved = Fleet(strategy, cuts=cuts), Fleet(strategy, cuts=cuts)
    unmoved.commit(1, unmoved.train(1))
    assert fleet.commit(1, fleet.train(1), a=new) == {"a": new}
    for device in cuts:
        stayed = unmoved.whole(device, unmoved.model.client(device))
        assert same(fleet.whole(device, fleet.model.client(device)), stayed)
    assert fleet.model.client("a").keys() == initial(new).keys()
    fleet.commit(2, fleet.train(2))


ROBUST = {"average": "trimmed", "clip_updates": 0.9, "largest_loss": 1.001, "largest_share": 0.4}


@STRATEGIES
@pytest.mark.parametrize("settings", [{}, ROBUST, {"average": "median", "aggregation_every": 1}])
def test_a_model_that_is_loaded_again_goes_on_bit_for_bit(strategy: str, settings: dict[str, Any]) -> None:
    settings = {"soft_labels": 1.0, **settings}
    fleet, restarted = Fleet(strategy, **settings), Fleet(strategy, cuts={}, **settings)
    assert fleet.model.soft_labels("b") is None
    fleet.commit(1, fleet.train(1), d=1)
    restarted.model.load(unpack_state(pack_state(fleet.model.state())))
    restarted.cuts = fleet.cuts
    for device, cut in fleet.cuts.items():
        restarted.model.join(device, cut, IMAGES[device])
    for number in (2, 3):
        for one in (fleet, restarted):
            one.commit(number, one.train(number, "a", "b", "d"))
        assert same(fleet.model.trunk_weights(), restarted.model.trunk_weights())
        for device in CUTS:
            assert fleet.model.digest(device) == restarted.model.digest(device)
        ours, theirs = fleet.model.soft_labels("b"), restarted.model.soft_labels("b")
        assert ours is not None and theirs is not None and ours.round == theirs.round == number
        assert torch.equal(ours.probabilities, theirs.probabilities)


@STRATEGIES
def test_only_what_the_trunk_was_trained_with_weighs(strategy: str) -> None:
    """A device that says it has many images, and sends no batch, is no part of any average."""
    fleet = Fleet(strategy)
    fleet.model.join("a", 1, 1 << 62)
    honest = fleet.train(1, "b", "c", "d")
    silent = {name: torch.full_like(tensor, 7) for name, tensor in initial(1).items()}
    before = {device: fleet.whole(device, client) for device, client in honest.items()}
    fleet.commit(1, {"a": silent, **honest})
    for name, tensor in fleet.whole("a", fleet.model.client("a")).items():
        if name in before["b"] and not name.endswith(COUNTER):
            np.testing.assert_allclose(tensor.numpy(), mean(before, name), rtol=1e-5, atol=1e-6)


def test_what_was_trained_counts_for_one_round() -> None:
    fleet = Fleet("averaging")
    fleet.commit(1, fleet.train(1))
    own = fleet.trunk("b")
    fleet.commit(2, fleet.train(2, "c"))
    assert not same(own, fleet.trunk("b"))
    assert same(fleet.trunk("b"), fleet.trunk("c"))


@STRATEGIES
def test_no_device_has_more_than_the_largest_share(strategy: str) -> None:
    capped, alike = Fleet(strategy, largest_share=0.25), Fleet(strategy, weighting="uniform")
    for fleet in (capped, alike):
        fleet.commit(1, fleet.train(1))
    for name, tensor in capped.whole("a", capped.model.client("a")).items():
        torch.testing.assert_close(tensor, alike.whole("a", alike.model.client("a"))[name])


@STRATEGIES
@pytest.mark.parametrize("average", ["trimmed", "median"])
def test_one_client_network_among_four_cannot_move_an_average_beyond_the_others(
    strategy: str, average: str
) -> None:
    fleet = Fleet(strategy, average=average, cuts=dict.fromkeys("abcd", 2))
    sent = fleet.train(1)
    honest = [{name: tensor.clone() for name, tensor in sent[device].items()} for device in "bcd"]
    for tensor in sent["a"].values():
        tensor.fill_(1e6)
    fleet.commit(1, sent)
    for name, tensor in fleet.model.client("b").items():
        values = torch.stack([client[name] for client in honest])
        assert bool((tensor >= values.amin(0)).all() and (tensor <= values.amax(0)).all()), name


@STRATEGIES
def test_an_update_is_measured_from_what_the_device_began_the_round_with(strategy: str) -> None:
    """In the first round the run's first weights, later what was committed for it."""
    fleet = Fleet(strategy, clip_updates=1.5)
    first = fleet.train(1)
    exit_of_a = first["a"]["exit.linear.weight"].clone()
    fleet.commit(1, first)
    alike = fleet.model.client("a")["exit.linear.weight"]
    assert torch.equal(alike, exit_of_a)  # it is not clipped: all updates are as long
    sent = fleet.train(2)
    for device, client in sent.items():
        for name, tensor in client.items():
            change = tensor - initial(CUTS[device])[name]
            tensor.copy_(fleet.model.client(device)[name] + change * (1 if device == "a" else 0.01))
    fleet.commit(2, sent)
    assert (fleet.model.client("a")["exit.linear.weight"] - exit_of_a).abs().max() < 0.05


@STRATEGIES
def test_a_huge_update_moves_an_average_by_a_few_honest_ones_only(strategy: str) -> None:
    fleet = Fleet(strategy, clip_updates=1.0, cuts=dict.fromkeys("abcd", 2))
    sent = fleet.train(1)
    for tensor in sent["a"].values():
        tensor.fill_(1e6)
    fleet.commit(1, sent)
    for name, tensor in fleet.model.client("b").items():
        if not name.endswith(COUNTER):
            assert (tensor - initial(2)[name]).abs().max() < 2


@STRATEGIES
def test_a_device_whose_loss_is_far_above_the_others_neither_trains_nor_counts(strategy: str) -> None:
    """Left out, it is answered still, and takes over the averages of the others."""
    cuts = dict.fromkeys("abcd", 2)
    fleet = Fleet(strategy, cuts=cuts, largest_loss=2.0)
    features, labels = fleet.features("a", torch.Generator().manual_seed(0)), torch.arange(BATCH) % 10

    def train(number: int, device: str, factor: float = 1.0) -> float:
        return fleet.model.train(device, factor * features, labels, round_number=number, step=0, steps=1)

    losses = [train(1, "b"), train(1, "c"), train(1, "d"), train(1, "a", 1000)]
    assert losses[3] > 2 * max(losses[:3])
    fleet.commit(1, {device: copy.deepcopy(initial(2)) for device in cuts})
    before = fleet.trunk("a")
    assert train(2, "a") > 0 and same(before, fleet.trunk("a"))
    for device in "bcd":
        train(2, device)
    sent = {device: copy.deepcopy(initial(2)) for device in cuts}
    for tensor in sent["a"].values():
        tensor.fill_(9)
    fleet.commit(2, sent)
    for name, tensor in fleet.model.client("a").items():
        if not name.endswith(COUNTER):
            torch.testing.assert_close(tensor, initial(2)[name])


@STRATEGIES
def test_who_was_absent_takes_the_average_of_those_who_counted(strategy: str) -> None:
    """Not the network of its cut's other device, whose batches the trunk was not trained on."""
    fleet = Fleet(strategy)
    fleet.commit(1, fleet.train(1))
    held = copy.deepcopy(dict(fleet.model.client("c")))
    sent = fleet.train(2, "a", "d")
    fleet.commit(2, {**sent, "b": {name: torch.full_like(one, 9) for name, one in initial(2).items()}})
    assert same(fleet.model.client("c"), held)


@STRATEGIES
@pytest.mark.parametrize("average", ["trimmed", "median"])
def test_a_hostile_network_reaches_neither_its_cuts_other_exit_nor_a_stage_by_it(
    strategy: str, average: str
) -> None:
    fleet = Fleet(strategy, average=average, cuts={"a": 2, "b": 2, "c": 3, "d": 3})
    sent = fleet.train(1)
    honest = {device: copy.deepcopy(sent[device]) for device in "bcd"}
    for tensor in sent["a"].values():
        tensor.fill_(1e6)
    fleet.commit(1, sent)
    for name, tensor in fleet.model.client("b").items():
        if name.startswith(EXIT):
            assert torch.equal(tensor, honest["b"][name])
        else:
            values = torch.stack([client[name] for client in honest.values()])
            assert bool((tensor >= values.amin(0)).all() and (tensor <= values.amax(0)).all()), name


@STRATEGIES
@pytest.mark.parametrize("is_reversed", [False, True])
def test_two_exits_of_a_cut_that_contradict_each_other_are_not_averaged(
    strategy: str, is_reversed: bool
) -> None:
    """Of two nobody knows which is wrong, and their mean has learnt nothing."""
    fleet = Fleet(strategy, clip_updates=10.0, cuts={"a": 2, "b": 2, "c": 3, "d": 3})
    sent = fleet.train(1)
    own = copy.deepcopy(sent["b"])
    for name, tensor in sent["a"].items():
        if is_reversed and name.startswith(EXIT):
            tensor.copy_(2 * initial(2)[name] - tensor)
    for device in "ab":  # each has counted its batches
        for name, tensor in sent[device].items():
            if name.endswith(COUNTER):
                tensor.add_(1000)
    fleet.commit(1, sent)
    exits = [name for name in own if name.startswith(EXIT) and not name.endswith(COUNTER)]
    held = {device: fleet.model.client(device) for device in "ab"}
    assert all(torch.equal(held["b"][name], own[name]) for name in exits) == is_reversed
    assert all(torch.equal(held["a"][name], held["b"][name]) for name in exits) != is_reversed
    fleet.commit(2, fleet.train(2))  # what is apart stays apart
    held = {device: fleet.model.client(device) for device in "ab"}
    assert all(torch.equal(held["a"][name], held["b"][name]) for name in exits) != is_reversed


def observed(fleet: Fleet, generator: torch.Generator) -> dict[str, dict[str, Tensor]]:
    """Trunks see two batches of each device; made-up statistics of the client networks, by device."""
    found = {}
    for device, cut in fleet.cuts.items():
        for step in range(2):
            fleet.model.observe(device, fleet.features(device, generator), round_number=1, step=step)
        like = fleet.model.statistics_assembler(cut).missing
        own = fleet.model.client(device)
        found[device] = {name: torch.rand(own[name].shape, generator=generator) for name in like}
    return found


@STRATEGIES
def test_statistics_of_a_commit_are_of_all_devices_images(strategy: str) -> None:
    fleet, generator = Fleet(strategy, statistics_batches=2), torch.Generator().manual_seed(7)
    fleet.commit(1, fleet.train(1))
    before = {device: fleet.whole(device, fleet.model.client(device)) for device in CUTS}
    found = observed(fleet, generator)
    assert not fleet.model.is_fresh
    unchanged = {device: fleet.whole(device, fleet.model.client(device)) for device in CUTS}
    assert all(same(unchanged[device], before[device]) for device in CUTS), "trunks only looked"
    fleet.model.refresh(found)
    assert fleet.model.is_fresh
    name = "first.1.running_mean"  # all hold it; cut 1 is behind it
    wanted = mean({device: {name: found[device][f"client.{name}"]} for device in CUTS}, name)
    wholes = {device: fleet.whole(device, fleet.model.client(device)) for device in CUTS}
    for device, whole in wholes.items():
        np.testing.assert_allclose(whole[name].numpy(), wanted, rtol=1e-5)
        changed = {key for key in whole if not torch.equal(whole[key], before[device][key])}
        assert changed == {key for key in whole if is_statistic(key)}
        for key in changed:
            assert torch.equal(whole[key], wholes["a"][key]), "one network, wherever it is cut"
    again = FleetModel(fleet.spec, copy.deepcopy(NETWORK))
    again.load(unpack_state(pack_state(fleet.model.state())))
    assert again.is_fresh
    assert same(again.client("b"), fleet.model.client("b"))
    fleet.commit(2, fleet.train(2))
    assert not fleet.model.is_fresh


def test_a_batch_whose_statistics_are_out_of_bounds_does_not_count() -> None:
    fleet, generator = Fleet("sequential", statistics_batches=2), torch.Generator().manual_seed(7)
    fleet.commit(1, fleet.train(1))
    honest = Fleet("sequential", statistics_batches=2)
    honest.commit(1, honest.train(1))
    huge = torch.full((4, *fleet.model.feature_shape(1)), 6e4) * torch.randn(4, 1, 1, 1, generator=generator)
    with pytest.raises(Untrainable, match="out of bounds"):
        fleet.model.observe("a", huge * 1e3, round_number=1, step=9)
    for one in (fleet, honest):
        one.model.refresh(observed(one, torch.Generator().manual_seed(8)))
    assert same(fleet.model.trunk_weights(), honest.model.trunk_weights())


def test_statistics_of_a_hostile_device_are_clipped_where_updates_are() -> None:
    """Its network is right, and its statistics are a thousand times too large."""
    largest = {}
    for clip in (0.0, 1.0):
        fleet = Fleet("sequential", statistics_batches=2, clip_updates=clip)
        fleet.commit(1, fleet.train(1))
        found = observed(fleet, torch.Generator().manual_seed(8))
        for tensor in found["d"].values():
            tensor.mul_(1000)
        fleet.model.refresh(found)
        held = fleet.model.client("a")
        largest[clip] = max(float(held[name].max()) for name in found["a"] if name.startswith(CLIENT))
    assert largest[0.0] > 100
    assert largest[1.0] < 3


def test_who_does_not_count_in_the_commit_has_no_part_in_the_median_of_its_statistics() -> None:
    """Nothing of it was trained on, and it says of its statistics that they are as they were."""
    trunks = []
    for takes_part in (False, True):
        fleet = Fleet("sequential", statistics_batches=2, clip_updates=1.0)
        sent = fleet.train(1, "b", "c", "d")
        sent["a"] = {name: tensor.clone() for name, tensor in initial(1).items()}
        fleet.commit(1, sent)
        found = observed(fleet, torch.Generator().manual_seed(8))
        found["a"] = {name: fleet.model.client("a")[name].clone() for name in found["a"]}
        fleet.model.refresh(found if takes_part else {d: own for d, own in found.items() if d != "a"})
        trunks.append(fleet.model.trunk_weights())
    assert same(*trunks)


@STRATEGIES
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_a_device_whose_cut_was_in_no_round_takes_the_averages_of_its_stages(
    strategy: str, momentum: float
) -> None:
    """Where rounds have a sample of the devices: its own network would be of long ago."""
    fleet = Fleet(strategy, server_momentum=momentum, sample="2")
    for number in (1, 2, 3):
        fleet.commit(number, fleet.train(number, "a", "b"))
    committed = {**fleet.whole("a", fleet.model.client("a")), **fleet.whole("b", fleet.model.client("b"))}
    absent = fleet.whole("d", fleet.model.client("d"))
    assert all(torch.equal(absent[name], committed[name]) for name in committed if not name.endswith(COUNTER))
    kept = {name: tensor.clone() for name, tensor in fleet.model.client("d").items()}
    fleet.train(4, "a", "b")
    assert same(kept, fleet.model.client("d"))  # it shares no tensor with what is trained


@pytest.mark.parametrize("averaging", ["none", "layerwise"])
def test_trunks_that_are_summed_up_one_by_one_leave_the_same_models(averaging: str) -> None:
    """Also for one that joins later, which begins from the averages, with counters at nothing."""
    fleets = [Fleet("averaging", averaging, trunk_momentum="dropped") for _ in range(2)]
    for number in (1, 2):
        for fleet in fleets:
            devices = in_order(fleet.cuts)
            sent = fleet.train(number, *devices)
            for device in devices if fleet is fleets[1] else ():
                fleet.model.sum_up(device)
            fleet.commit(number, sent, d=number)
    for fleet in fleets:
        fleet.model.join("late", 1, 20)
    at_once, in_turn = (fleet.model.trunk_weights() for fleet in fleets)
    assert same(at_once, in_turn)
    assert at_once["late/second.1.num_batches_tracked"] == 0 < at_once["a/second.1.num_batches_tracked"]


@STRATEGIES
def test_a_step_keeps_no_gradients(strategy: str) -> None:
    """Of many trunks they would take as much memory as the weights."""
    others = {id(one): one for one in _parameters()}
    fleet = Fleet(strategy)
    fleet.train(1)
    batch = torch.full((BATCH, *fleet.model.feature_shape(1)), math.inf), torch.zeros(BATCH).long()
    with pytest.raises(Untrainable):
        fleet.model.train("a", *batch, round_number=2, step=0, steps=STEPS)
    own = [one for one in _parameters() if id(one) not in others]
    assert own
    assert all(one.grad is None for one in own)


def _parameters() -> list[nn.Parameter]:
    return [one for one in gc.get_objects() if isinstance(one, nn.Parameter)]
