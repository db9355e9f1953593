# SPDX-License-Identifier: Apache-2.0
"""Effects of a commit on the models of a fleet."""

from __future__ import annotations

import copy
import gc
import math
from typing import Any

import numpy as np
import pytest
import torch
from averaged_models import (
    BATCH,
    CUTS,
    NETWORK,
    STEPS,
    STRATEGIES,
    Fleet,
    initial,
    mean,
    observed,
    same,
)
from torch import nn

from splitee.training.batchnorm_statistics import is_statistic
from splitee.training.state import COUNTER, pack_state, unpack_state
from splitee.training.weights import EXIT
from splitee_server.learning.fleet_model import Contribution, FleetModel
from splitee_server.learning.lanes import in_order
from splitee_server.learning.strategies.base import Untrainable


@STRATEGIES
def test_layerwise_averaging_makes_every_stage_the_mean_of_its_holders(strategy: str) -> None:
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
def test_missing_device_takes_the_average_of_its_cut_or_keeps_its_network(strategy: str) -> None:
    fleet = Fleet(strategy)
    fleet.commit(1, fleet.train(1))
    only_one_at_its_cut = dict(fleet.model.client("d"))
    fleet.commit(2, fleet.train(2, "a", "b"))
    assert same(fleet.model.client("c"), fleet.model.client("b"))
    assert fleet.model.digest("c") == fleet.model.digest("b")
    assert same(fleet.model.client("d"), only_one_at_its_cut)


@STRATEGIES
def test_held_network_is_released_after_its_device_finishes_a_round(strategy: str) -> None:
    fleet = Fleet(strategy, "none")
    fleet.commit(1, fleet.train(1), a=2)
    moved, digest = dict(fleet.model.client("a")), fleet.model.digest("a")
    fleet.model.commit(2, dict.fromkeys("bcd", Contribution()))
    assert same(fleet.model.client("a"), moved) and fleet.model.digest("a") == digest
    assert not fleet.model.holds("b")
    fleet.model.commit(3, {"a": Contribution()})
    assert not fleet.model.holds("a")


@STRATEGIES
def test_late_joiner_starts_from_the_averages(strategy: str) -> None:
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
def test_move_keeps_the_weights_of_every_stage(strategy: str, old: int, new: int) -> None:
    """The commit averages the weights first, as in a fleet without a move."""
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
def test_reloaded_model_continues_bit_for_bit(strategy: str, settings: dict[str, Any]) -> None:
    settings = {"soft_labels": 1.0, **settings}
    fleet = Fleet(strategy, **settings)
    assert fleet.model.soft_labels("b") is None
    fleet.commit(1, fleet.train(1), d=1)
    restarted = fleet.restarted()
    for number in (2, 3):
        for one in (fleet, restarted):
            one.commit(number, one.train(number, "a", "b", "d"))
        assert same(fleet.model.trunk_weights(), restarted.model.trunk_weights())
        for device in CUTS:
            assert fleet.model.digest(device) == restarted.model.digest(device)
        ours, theirs = fleet.model.soft_labels("b"), restarted.model.soft_labels("b")
        assert ours is not None and theirs is not None and ours.round == theirs.round == number
        assert torch.equal(ours.probabilities, theirs.probabilities)


def test_trained_trunk_counts_for_one_round_only() -> None:
    fleet = Fleet("averaging")
    fleet.commit(1, fleet.train(1))
    own = fleet.trunk("b")
    fleet.commit(2, fleet.train(2, "c"))
    assert not same(own, fleet.trunk("b"))
    assert same(fleet.trunk("b"), fleet.trunk("c"))


@STRATEGIES
def test_statistics_of_a_commit_are_means_over_all_devices(strategy: str) -> None:
    fleet, generator = Fleet(strategy, statistics_batches=2), torch.Generator().manual_seed(7)
    fleet.commit(1, fleet.train(1))
    before = {device: fleet.whole(device, fleet.model.client(device)) for device in CUTS}
    found = observed(fleet, generator)
    assert not fleet.model.is_fresh
    unchanged = {device: fleet.whole(device, fleet.model.client(device)) for device in CUTS}
    assert all(same(unchanged[device], before[device]) for device in CUTS), "trunks only looked"
    fleet.model.refresh(found)
    assert fleet.model.is_fresh
    name = "first.1.running_mean"  # all client networks hold it
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


@STRATEGIES
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_device_whose_cut_was_in_no_round_takes_the_averages_of_its_stages(
    strategy: str, momentum: float
) -> None:
    """Rounds have a sample of the devices: the device's own network would be outdated."""
    fleet = Fleet(strategy, server_momentum=momentum, sample="2")
    for number in (1, 2, 3):
        fleet.commit(number, fleet.train(number, "a", "b"))
    committed = {**fleet.whole("a", fleet.model.client("a")), **fleet.whole("b", fleet.model.client("b"))}
    absent = fleet.whole("d", fleet.model.client("d"))
    assert all(torch.equal(absent[name], committed[name]) for name in committed if not name.endswith(COUNTER))
    kept = {name: tensor.clone() for name, tensor in fleet.model.client("d").items()}
    fleet.train(4, "a", "b")
    assert same(kept, fleet.model.client("d"))  # it shares no tensor with a network in training


@pytest.mark.parametrize("averaging", ["none", "layerwise"])
def test_trunks_summed_up_one_by_one_leave_the_same_weights_and_state(averaging: str) -> None:
    """Also for a device that joins later, which begins from the averages, with counters at zero."""
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
    assert pack_state(fleets[0].model.state()) == pack_state(fleets[1].model.state())
    assert at_once["late/second.1.num_batches_tracked"] == 0 < at_once["a/second.1.num_batches_tracked"]


@pytest.mark.parametrize("settings", [{"balanced_loss": True}, {"largest_loss": 1.001}, {"soft_labels": 1.0}])
def test_commit_does_not_depend_on_batches_of_a_device_that_has_dropped_out(settings: dict[str, Any]) -> None:
    """How many of them have arrived by then is a matter of chance."""
    fleets = [Fleet("averaging", trunk_momentum="dropped", **settings) for _ in range(2)]
    for fleet in fleets:
        fleet.commit(1, fleet.train(1))
        sent = fleet.train(2, "a", "c", "d")
        if fleet is fleets[1]:
            fleet.train(3, "b")
            fleet.model.forget("b")
        fleet.commit(2, sent)
    assert fleets[0].model.left_out == fleets[1].model.left_out
    assert pack_state(fleets[0].model.state()) == pack_state(fleets[1].model.state())


def test_first_round_of_a_device_that_has_dropped_out_leaves_no_class_mix() -> None:
    fleet = Fleet("sequential", balanced_loss=True)
    fleet.train(1, "b")
    fleet.model.forget("b")
    fleet.commit(1, fleet.train(1, "a"))
    assert fleet.model.state()["class_mix"].keys() == {"a"}


@STRATEGIES
def test_training_step_keeps_no_gradients(strategy: str) -> None:
    """Gradients of many trunks would take as much memory as the weights."""
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
