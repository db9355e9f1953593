# SPDX-License-Identifier: Apache-2.0
"""What each method of a comparison computes, sends and averages, on networks of known sizes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import BATCH, images, in_messages, tiny_run

from splitee.networks.split import build_for
from splitee.protocol.run_spec import RunSpec
from splitee_device.data.image_sets import ImageSet
from splitee_device.data.images import DeviceData
from splitee_device.training.trainer import ClientTrainer
from splitee_lab.methods.experiment import Experiment
from splitee_lab.methods.registry import BASELINES, METHODS, STRATEGIES, batches_of
from splitee_lab.methods.simulation import SimulatedDevice, Simulation
from splitee_server.learning.averages import average_clients
from splitee_server.learning.lanes import in_order
from splitee_server.learning.strategies.base import Strategy
from splitee_server.learning.strategies.registry import make_strategy

CUTS = {"a": 1, "b": 2, "c": 2}
SAMPLES = 64  # so 4 batches a client
FEATURES = {1: 4 * 8 * 8, 2: 8 * 3 * 3}  # numbers at each cut of the tiny network
MACS = {1: 4 * 27 * 64, 2: 4 * 27 * 64 + 8 * 36 * 9}  # stages 1..cut: outputs x inputs of each
WHOLE = MACS[2] + 72 * 16 + 16 * 10


@pytest.fixture(scope="module")
def data() -> DeviceData:
    return images(3 * SAMPLES)


def spec(**settings: Any) -> RunSpec:
    """A run whose bytes can be computed by hand."""
    return tiny_run(**{"codec": "fp32", "client_averaging": "none", **settings})


def experiment(run: RunSpec, data: DeviceData, cuts: dict[str, int] | None = None) -> Experiment:
    devices = {}
    for index, (name, cut) in enumerate((cuts or CUTS).items()):
        own = slice(index * SAMPLES, (index + 1) * SAMPLES)
        train = ImageSet(data.train.images[own], data.train.labels[own])
        devices[name] = SimulatedDevice(cut, dataclasses.replace(data, train=train))
    return Experiment(run, devices)


@pytest.mark.parametrize("method", ["centralized", "fedavg"])
def test_steps_of_a_round_count_per_client(method: str, data: DeviceData) -> None:
    counted = []
    short = dataclasses.replace(experiment(spec(steps=1), data), on_batch=lambda: counted.append(1))
    for _ in METHODS[method](short):
        pass
    assert len(counted) == batches_of(method, short) == 2 * 3


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_batch_is_counted_and_the_seed_decides_the_rounds(method: str, data: DeviceData) -> None:
    run = spec(strategy=method) if method in STRATEGIES else spec()
    counted = []
    once = dataclasses.replace(experiment(run, data), on_batch=lambda: counted.append(1))
    rounds = list(METHODS[method](once))
    assert [done.round for done in rounds] == [1, 2]
    assert len(counted) == batches_of(method, once) == 2 * 3 * SAMPLES // BATCH
    assert list(METHODS[method](experiment(run, data))) == rounds


@pytest.mark.parametrize("method", STRATEGIES)
def test_only_sampled_clients_train(method: str, data: DeviceData) -> None:
    counted = []
    run = spec(strategy=method, sample="1", rounds=3, client_averaging="layerwise")
    sampled = dataclasses.replace(experiment(run, data), on_batch=lambda: counted.append(1))
    rounds = list(METHODS[method](sampled))
    assert len(counted) == batches_of(method, sampled) == 3 * SAMPLES // BATCH
    client = {cut: MACS[cut] + inputs * 10 for cut, inputs in ((1, 16), (2, 72))}
    assert sorted(done.macs for done in rounds) == sorted(3 * client[cut] * SAMPLES for cut in CUTS.values())
    assert list(METHODS[method](experiment(run, data))) == rounds


@pytest.mark.slow
def test_methods_evaluate_every_second_round_and_the_last(data: DeviceData) -> None:
    for method, train in METHODS.items():
        run = spec(rounds=3, strategy=method) if method in STRATEGIES else spec(rounds=3)
        seldom = dataclasses.replace(experiment(run, data), evaluate_every=2)
        assert [bool(done.accuracies) for done in train(seldom)] == [False, True, True], method


@pytest.mark.parametrize(
    ("method", "sent", "macs"),
    [
        ("sequential", sum(SAMPLES * (4 * FEATURES[cut] + 1) for cut in (1, 2, 2)), "client"),
        ("centralized", 3 * SAMPLES * 3 * 32 * 32, "none"),
        ("alone", 0, "whole"),
        ("alone-exit", 0, "client"),
        ("splitfed", None, "equal"),
        ("fedavg", None, "whole"),
    ],
)
def test_bytes_and_device_compute_are_those_of_the_method(
    method: str, sent: int | None, macs: str, data: DeviceData
) -> None:
    run = spec()
    network = build_for(run)
    weights = {"fedavg": network.module, "splitfed": network.client(2)}.get(method)
    if weights is not None:  # each client sends and gets them
        sent = 3 * 2 * sum(tensor.nbytes for tensor in weights.state_dict().values())
    if method == "splitfed":  # features there, gradients back, labels
        sent = (sent or 0) + 3 * SAMPLES * (2 * 4 * FEATURES[2] + 1)
    each = {
        "client": sum(MACS[cut] + inputs * 10 for cut, inputs in ((1, 16), (2, 72), (2, 72))),
        "none": 0,
        "whole": 3 * WHOLE,
        "equal": 3 * MACS[2],
    }[macs]
    first = next(iter(METHODS[method](experiment(run, data))))
    batches = 3 * SAMPLES // BATCH if method in ("sequential", "splitfed") else 0
    assert first.bytes in in_messages(sent or 0, batches) if batches else first.bytes == sent
    assert first.traffic is not None
    assert first.traffic.payload == first.bytes + first.traffic.up.evaluation
    assert (first.traffic.up.evaluation > 0) == (method == "sequential")
    assert first.macs == 3 * each * SAMPLES  # forward, and two gradients


def test_splitfed_with_one_client_equals_training_the_whole_network(data: DeviceData) -> None:
    run = spec(network="tiny_networks:steady", rounds=3)
    one = {"only": 2}
    split = [done.accuracies["server"] for done in BASELINES["splitfed"](experiment(run, data, one))]
    whole = [done.accuracies["only"] for done in BASELINES["alone"](experiment(run, data, one))]
    assert split == whole


def test_fedavg_of_one_client_without_momentum_equals_training_alone(data: DeviceData) -> None:
    one = {"only": 2}
    averaged = BASELINES["fedavg"](experiment(spec(momentum=0.0), data, one))
    trained = BASELINES["alone"](experiment(spec(momentum=0.0), data, one))
    for mine, yours in zip(averaged, trained, strict=True):
        assert mine.accuracies["server"] == yours.accuracies["only"]


def test_alone_exit_equals_the_exits_of_a_fleet_without_averaging(data: DeviceData) -> None:
    fleet = list(METHODS["sequential"](experiment(spec(), data)))
    by_itself = list(METHODS["alone-exit"](experiment(spec(), data)))
    for mine, yours in zip(fleet, by_itself, strict=True):
        assert {name: one.exit_accuracy for name, one in mine.accuracies.items()} == {
            name: one.exit_accuracy for name, one in yours.accuracies.items()
        }


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_client_averaging_changes_accuracies_and_costs_bytes(strategy: str, data: DeviceData) -> None:
    none, same, layers = (
        list(METHODS[strategy](experiment(spec(strategy=strategy, client_averaging=how), data)))
        for how in ("none", "same-cut", "layerwise")
    )
    assert none[0].bytes < same[0].bytes == layers[0].bytes
    assert len({repr(rounds[1].accuracies) for rounds in (none, same, layers)}) == 3


@pytest.mark.parametrize("name", STRATEGIES)
def test_layerwise_averaging_gives_every_stage_its_weighted_mean(name: Any, data: DeviceData) -> None:
    trainers, strategy, samples = after_a_round(spec(strategy=name), data)
    before = {device: whole_network(trainers, strategy, device) for device in CUTS}
    average_clients("layerwise", weights_of(trainers), strategy, CUTS, samples)
    after = {device: whole_network(trainers, strategy, device) for device in CUTS}
    for key in after["a"]:
        if key.endswith("num_batches_tracked"):
            continue
        weighted = [before[device][key].double() * samples[device] for device in CUTS]
        mean = torch.stack(weighted).sum(0) / sum(samples.values())
        for device in CUTS:
            torch.testing.assert_close(after[device][key], mean.float())
    assert torch.equal(trainers["b"].weights()["exit.linear.weight"], exit_of(trainers["c"]))


def test_same_cut_averaging_leaves_other_cuts_and_trunks_unchanged(data: DeviceData) -> None:
    trainers, strategy, samples = after_a_round(spec(strategy="averaging"), data)
    single, trunks = trainers["a"].digest(), {name: one.clone() for name, one in strategy.weights().items()}
    average_clients("same-cut", weights_of(trainers), strategy, CUTS, samples)
    assert trainers["a"].digest() == single
    assert all(torch.equal(one, trunks[name]) for name, one in strategy.weights().items())
    assert trainers["b"].digest() == trainers["c"].digest()


def weights_of(trainers: dict[str, ClientTrainer]) -> dict[str, dict[str, torch.Tensor]]:
    return {name: trainer.weights() for name, trainer in trainers.items()}


def after_a_round(
    run: RunSpec, data: DeviceData
) -> tuple[dict[str, ClientTrainer], Strategy, dict[str, int]]:
    """Three clients that have trained a round, with unequal weights."""
    strategy = make_strategy(build_for(run), run)
    trainers = {}
    for name, device in experiment(run, data).devices.items():
        trainers[name] = ClientTrainer(build_for(run), device.cut, run, name, device.data)
        strategy.join(name, device.cut)
    batches = {name: list(trainers[name].round(1)) for name in in_order(trainers)}
    for step, together in enumerate(zip(*batches.values(), strict=True)):
        strategy.begin_step(step)
        for name, batch in zip(batches, together, strict=True):
            features, labels = torch.from_numpy(batch.features), torch.from_numpy(batch.labels)
            strategy.train(name, features, labels, round_number=1, step=step, steps=4)
    return trainers, strategy, {"a": 10, "b": 20, "c": 50}


def whole_network(
    trainers: dict[str, ClientTrainer], strategy: Strategy, device: str
) -> dict[str, torch.Tensor]:
    """A copy of the network that `device`'s images pass through."""
    parts = {**strategy.trunk(device).state_dict(), **trainers[device].client.state_dict()}
    return {name: one.clone() for name, one in parts.items()}


def exit_of(trainer: ClientTrainer) -> torch.Tensor:
    return trainer.weights()["exit.linear.weight"]


@pytest.mark.slow
def test_soft_labels_cost_bytes_from_the_second_round_on(data: DeviceData) -> None:
    """Two bytes for each class and image; exits learn from them a round later."""
    none, some = (
        list(METHODS["sequential"](experiment(spec(rounds=3, soft_labels=weight), data)))
        for weight in (0.0, 1.0)
    )
    more = [with_them.bytes - without.bytes for with_them, without in zip(some, none, strict=True)]
    assert more[0] == 0
    assert all(each in in_messages(3 * SAMPLES * 20, 3) for each in more[1:])
    changed = [one.accuracies != other.accuracies for one, other in zip(some, none, strict=True)]
    assert changed == [False, True, True]


def test_simulated_traffic_follows_the_codec(data: DeviceData) -> None:
    sizes = {}
    for codec in ("fp32", "fp16", "int8"):
        simulation = Simulation(spec(codec=codec), experiment(spec(), data).devices)
        sizes[codec] = next(iter(simulation.rounds())).traffic.up.training
    halved = sum(SAMPLES * 2 * FEATURES[cut] for cut in CUTS.values())
    assert sizes["fp32"] - sizes["fp16"] == halved
    assert sizes["int8"] < sizes["fp16"]
    assert np.isclose(sizes["int8"], sizes["fp32"] / 4, rtol=0.25)


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
def test_number_of_resident_trunks_does_not_change_the_weights(weighting: str, data: DeviceData) -> None:
    run = spec(
        strategy="averaging",
        trunk_momentum="dropped",
        weighting=weighting,
        client_averaging="layerwise",
        exits="fleet",
        exit_cuts=(1, 2),
        settled=True,
        deep_supervision=0.3,
        statistics_batches=2,
        server_momentum=0.3,
    )
    devices = experiment(run, data).devices
    moves = {1: {"a": 2, "c": 1}}
    digests: dict[int, list[str]] = {0: [], 1: []}
    for resident, found in digests.items():
        simulation = Simulation(run, devices, moves=moves, resident=resident)
        found += [simulation.digest() for _ in simulation.rounds()]
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == run.rounds
