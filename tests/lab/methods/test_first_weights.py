# SPDX-License-Identifier: Apache-2.0
"""Every method begins from the weights that are given, and leaves frozen stages as they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from msgspec.structs import replace
from tiny_runs import images
from torch import Tensor

from splitee.networks.split import build_for, build_network
from splitee.protocol.run_spec import RunSpec
from splitee_device.data.images import DeviceData, open_data
from splitee_device.training.baseline import exit_accuracy, standalone_spec
from splitee_device.training.trainer import ClientTrainer
from splitee_lab.methods.baselines import evaluate
from splitee_lab.methods.experiment import Experiment
from splitee_lab.methods.registry import METHODS, STRATEGIES
from splitee_lab.methods.simulation import SimulatedDevice, Simulation, build_at
from splitee_lab.methods.whole import whole_trainer
from splitee_server.learning.initial.weights import InitialWeights

SPEC = RunSpec(
    protocol=1,
    run="r",
    network="tiny_networks:tiny",
    num_classes=10,
    rounds=2,
    batch_size=16,
    weights="given 0123456789ab",
    freeze=2,
    frozen=2,
)
CUTS = {"a": 1, "b": 2, "c": 3}


@pytest.fixture(scope="module")
def initial() -> InitialWeights:
    """Weights of another seed than the run's."""
    return InitialWeights(build_network("tiny_networks:tiny", num_classes=10, seed=9).module.state_dict())


@pytest.fixture(scope="module")
def data() -> DeviceData:
    return open_data("builtin:fashion-mnist", input_shape=(3, 32, 32), limit=32)


def devices(data: DeviceData) -> dict[str, SimulatedDevice]:
    return {name: SimulatedDevice(cut, data) for name, cut in CUTS.items()}


def frozen_of(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of frozen stages among those of clients and trunks, by their last names."""
    keys = build_for(SPEC).frozen_keys
    return {name: one for name, one in weights.items() if any(name.endswith(key) for key in keys)}


@pytest.mark.parametrize("strategy", ["sequential", "averaging"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"client_averaging": "none"},
        {"client_averaging": "same-cut", "clip_updates": 1.0},
        {"average": "median", "optimizer": "adamw", "augmentation": "flip"},
    ],
)
def test_fleet_keeps_the_given_weights_of_frozen_stages(
    data: DeviceData, initial: InitialWeights, strategy: str, settings: dict[str, Any]
) -> None:
    """Also those of a device that moves to another cut."""
    spec = replace(SPEC, strategy=strategy, **settings)
    simulation = Simulation(spec, devices(data), initial=initial, moves={1: {"a": 3}})
    for _ in simulation.rounds():
        pass
    own = {**simulation._model.trunk_weights()}
    for name, trainer in simulation._trainers.items():
        own |= {f"{name}.{key}": tensor for key, tensor in trainer.weights().items()}
    found = frozen_of(own)
    assert len(found) > 10
    for name, tensor in found.items():
        key = next(key for key in initial.tensors if name.endswith(key))
        assert torch.equal(tensor, initial.tensors[key]), name
    assert not torch.equal(own["c.client.hidden.1.weight"], initial.tensors["hidden.1.weight"])


@pytest.mark.parametrize("method", [name for name in METHODS if name != "alone-exit"])
@pytest.mark.parametrize("cuts", [CUTS, {"a": 1, "b": 1}])
def test_every_method_with_a_whole_network_begins_from_the_given_weights(
    data: DeviceData, initial: InitialWeights, method: str, cuts: dict[str, int]
) -> None:
    """At a rate that changes no weight, it predicts like the given network; frozen are its BatchNorms."""
    strategy = method if method in STRATEGIES else SPEC.strategy
    spec = replace(SPEC, learning_rate=1e-30, codec="fp32", strategy=strategy)
    own = {name: SimulatedDevice(cut, data) for name, cut in cuts.items()}
    *_, done = METHODS[method](Experiment(spec, own, initial=initial))
    assert done.round == SPEC.rounds and done.accuracies
    given, seeds = build_for(spec), build_for(spec)
    initial.load_into(given)
    expected, other = (evaluate(network.module, data.held_out, spec) for network in (given, seeds))
    assert {found.accuracy for found in done.accuracies.values()} == {expected} != {other}


def test_exits_alone_begin_from_the_given_weights(initial: InitialWeights) -> None:
    """Also where all stages of a client are frozen. An untrained exit's predictions do not depend on them."""
    own = devices(images(128))

    def trained(first: InitialWeights | None) -> dict[str, float | None]:
        found: dict[str, float | None] = {}
        for name, device in own.items():
            trainer = ClientTrainer(
                build_at(SPEC, "cpu", first), device.cut, standalone_spec(SPEC), name, device.data
            )
            for number in range(1, SPEC.rounds + 1):
                for _ in trainer.round(number):
                    pass
            found[name] = exit_accuracy(trainer)
        return found

    *_, done = METHODS["alone-exit"](Experiment(SPEC, own, initial=initial))
    found = {name: one.exit_accuracy for name, one in done.accuracies.items()}
    assert found == trained(initial) != trained(None)


def test_training_of_a_whole_network_keeps_the_given_weights_of_frozen_stages(
    data: DeviceData, initial: InitialWeights
) -> None:
    experiment = Experiment(SPEC, devices(data), initial=initial)
    trainer = whole_trainer(experiment, "a", data.train)
    for _ in trainer.round(1):
        pass
    after = trainer.network.state_dict()
    assert not torch.equal(after["hidden.1.weight"], initial.tensors["hidden.1.weight"])
    frozen = frozen_of(after)
    assert len(frozen) > 10
    for name, tensor in frozen.items():
        assert torch.equal(tensor, initial.tensors[name]), name


def test_frozen_stages_are_not_sent(data: DeviceData, initial: InitialWeights) -> None:
    sent = {}
    for frozen in (0, 2):
        spec = replace(SPEC, freeze=frozen, frozen=frozen, rounds=1)
        simulation = Simulation(spec, devices(data), initial=initial)
        sent[frozen] = next(simulation.rounds()).traffic
    stages = build_for(SPEC)
    tensors = initial.tensors
    keys = [key for cut in CUTS.values() for key in stages.stage_keys(1, min(cut, 2))]
    size = sum(tensors[key].nbytes for key in keys)
    for way in ("up", "down"):
        none, two = (getattr(sent[frozen], way).client_networks for frozen in (0, 2))
        assert size < none - two < size + 100 * len(keys)  # names and shapes do not travel either
    assert sent[0].up.training == sent[2].up.training > 0
