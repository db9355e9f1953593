# SPDX-License-Identifier: Apache-2.0
"""Limits on what broken or hostile devices can do to the models of a fleet at a commit."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping

import numpy as np
import pytest
import torch
from averaged_models import BATCH, CUTS, IMAGES, STEPS, STRATEGIES, Fleet, initial, mean, observed, same
from torch import Tensor

from splitee.training.batchnorm_statistics import is_statistic
from splitee.training.state import COUNTER
from splitee.training.weights import CLIENT, EXIT
from splitee_server.learning.fleet_model import Contribution
from splitee_server.learning.strategies.base import Untrainable


@STRATEGIES
def test_device_without_a_trained_batch_has_no_weight_in_averages(strategy: str) -> None:
    """A device that reports many images, but sends no batch, is no part of any average."""
    fleet = Fleet(strategy)
    fleet.model.join("a", 1, 1 << 62)
    honest = fleet.train(1, "b", "c", "d")
    silent = {name: torch.full_like(tensor, 7) for name, tensor in initial(1).items()}
    before = {device: fleet.whole(device, client) for device, client in honest.items()}
    fleet.commit(1, {"a": silent, **honest})
    for name, tensor in fleet.whole("a", fleet.model.client("a")).items():
        if name in before["b"] and not name.endswith(COUNTER):
            np.testing.assert_allclose(tensor.numpy(), mean(before, name), rtol=1e-5, atol=1e-6)


def test_untrainable_batch_has_no_weight_in_averages_within_a_round() -> None:
    """Its device's trunk is still that of the last average, to which it would pull the others back."""
    fleets = [Fleet("averaging", "none", aggregation_every=1) for _ in range(2)]
    for fleet in fleets:
        generator = torch.Generator().manual_seed(1)
        for step in range(STEPS):
            for device in ("b", "c"):
                batch = fleet.features(device, generator, IMAGES[device]), torch.zeros(IMAGES[device]).long()
                fleet.model.train(device, *batch, round_number=1, step=step, steps=STEPS)
            if fleet is fleets[1]:
                endless = torch.full_like(fleet.features("a", torch.Generator()), math.inf)
                with pytest.raises(Untrainable):
                    fleet.model.train(
                        "a", endless, torch.zeros(BATCH).long(), round_number=1, step=step, steps=STEPS
                    )
        fleet.model.commit(1, {"b": Contribution(), "c": Contribution()})
    assert same(fleets[0].trunk("b"), fleets[1].trunk("b"))


@STRATEGIES
def test_largest_share_of_a_quarter_weighs_four_devices_equally(strategy: str) -> None:
    capped, alike = Fleet(strategy, largest_share=0.25), Fleet(strategy, weighting="uniform")
    for fleet in (capped, alike):
        fleet.commit(1, fleet.train(1))
    for name, tensor in capped.whole("a", capped.model.client("a")).items():
        torch.testing.assert_close(tensor, alike.whole("a", alike.model.client("a"))[name])


@STRATEGIES
@pytest.mark.parametrize("average", ["trimmed", "median"])
def test_robust_average_stays_within_the_range_of_three_honest_networks(strategy: str, average: str) -> None:
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
def test_update_is_measured_from_the_weights_at_the_start_of_the_round(strategy: str) -> None:
    """The run's initial weights in the first round, later those committed for the device."""
    fleet = Fleet(strategy, clip_updates=1.5)
    first = fleet.train(1)
    exit_of_a = first["a"]["exit.linear.weight"].clone()
    fleet.commit(1, first)
    alike = fleet.model.client("a")["exit.linear.weight"]
    assert torch.equal(alike, exit_of_a)  # it is not clipped, as all updates have the same size
    sent = fleet.train(2)
    for device, client in sent.items():
        for name, tensor in client.items():
            change = tensor - initial(CUTS[device])[name]
            tensor.copy_(fleet.model.client(device)[name] + change * (1 if device == "a" else 0.01))
    fleet.commit(2, sent)
    assert (fleet.model.client("a")["exit.linear.weight"] - exit_of_a).abs().max() < 0.05


@STRATEGIES
def test_huge_update_enters_the_average_at_the_median_size_of_updates(strategy: str) -> None:
    fleet = Fleet(strategy, clip_updates=1.0, cuts=dict.fromkeys("abcd", 2))
    sent = fleet.train(1)
    for tensor in sent["a"].values():
        tensor.fill_(1e6)
    updates = {device: update_of(client) for device, client in sent.items()}
    fleet.commit(1, sent)
    held = update_of(fleet.model.client("b"))
    for are_statistics in (False, True):  # which have other scales
        names = [name for name in held if is_statistic(name) == are_statistics]
        sizes = {device: rms([own[name] for name in names]) for device, own in updates.items()}
        limit = np.median(list(sizes.values()))
        clipped = {
            device: {name: own[name] * min(1.0, limit / sizes[device]) for name in names}
            for device, own in updates.items()
        }
        for name in names:
            np.testing.assert_allclose(held[name].numpy(), mean(clipped, name), rtol=1e-4, atol=1e-5)


def update_of(client: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a client network at cut 2 has learnt since the start of the run, in float64."""
    start = initial(2)
    return {
        name: tensor.double() - start[name] for name, tensor in client.items() if not name.endswith(COUNTER)
    }


def rms(tensors: Iterable[Tensor]) -> float:
    return float(torch.cat([tensor.flatten() for tensor in tensors]).square().mean().sqrt())


@STRATEGIES
def test_device_with_a_far_higher_loss_neither_trains_nor_counts(strategy: str) -> None:
    """A device that is left out still gets a loss, and takes over the averages of the others."""
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
def test_absent_device_keeps_its_network_if_only_an_untrained_one_of_its_cut_is_sent(strategy: str) -> None:
    """The trunk was not trained on the batches of the other device, and so there is no average of the cut."""
    fleet, quiet = Fleet(strategy), Fleet(strategy)
    for one in (fleet, quiet):
        one.commit(1, one.train(1))
    held = copy.deepcopy(dict(fleet.model.client("c")))
    untrained = {name: torch.full_like(tensor, 9) for name, tensor in initial(2).items()}
    fleet.commit(2, {**fleet.train(2, "a", "d"), "b": untrained})
    quiet.commit(2, quiet.train(2, "a", "d"))  # "b" sends nothing
    assert same(fleet.model.client("c"), held)
    for device in "acd":
        own, expected = (one.whole(device, one.model.client(device)) for one in (fleet, quiet))
        assert same(own, expected), device


@STRATEGIES
@pytest.mark.parametrize("average", ["trimmed", "median"])
def test_robust_average_keeps_a_hostile_network_out_of_exits_and_stages(strategy: str, average: str) -> None:
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
def test_two_exits_of_a_cut_are_averaged_unless_they_contradict_each_other(
    strategy: str, is_reversed: bool
) -> None:
    """It is unknown which of the two is wrong, and their mean would have learnt nothing."""
    fleet = Fleet(strategy, clip_updates=10.0, cuts={"a": 2, "b": 2, "c": 3, "d": 3})
    sent = fleet.train(1)
    own = copy.deepcopy(sent["b"])
    for name, tensor in sent["a"].items():
        if is_reversed and name.startswith(EXIT):
            tensor.copy_(2 * initial(2)[name] - tensor)
    for device in "ab":  # each network has counted batches
        for name, tensor in sent[device].items():
            if name.endswith(COUNTER):
                tensor.add_(1000)
    fleet.commit(1, sent)
    exits = [name for name in own if name.startswith(EXIT) and not name.endswith(COUNTER)]
    held = {device: fleet.model.client(device) for device in "ab"}
    assert all(torch.equal(held["b"][name], own[name]) for name in exits) == is_reversed
    assert all(torch.equal(held["a"][name], held["b"][name]) for name in exits) != is_reversed
    fleet.commit(2, fleet.train(2))  # exits that differ stay apart
    held = {device: fleet.model.client(device) for device in "ab"}
    assert all(torch.equal(held["a"][name], held["b"][name]) for name in exits) != is_reversed


def test_batch_with_statistics_out_of_bounds_is_rejected() -> None:
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


def test_statistics_of_a_hostile_device_are_clipped_if_updates_are() -> None:
    """The network of the device is right; its statistics are a thousand times too large."""
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


def test_untrained_device_has_no_part_in_the_median_of_statistics_updates() -> None:
    """The trunk was not trained on its batches, and it reports unchanged statistics."""
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
