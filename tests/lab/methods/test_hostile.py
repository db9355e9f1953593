# SPDX-License-Identifier: Apache-2.0
"""What hostile clients send, and that a simulation with them is as repeatable as one without."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import images, tiny_run

from splitee.networks.split import build_for
from splitee.protocol.run_spec import RunSpec
from splitee_device.data.image_sets import ImageSet
from splitee_device.data.images import DeviceData
from splitee_device.training.trainer import ClientTrainer
from splitee_lab.methods import names
from splitee_lab.methods.hostile import FLIP_SCALE, HOSTILE
from splitee_lab.methods.registry import BASELINES
from splitee_lab.methods.simulation import SimulatedDevice, Simulation
from splitee_server.learning.strategies.registry import STRATEGIES

SAMPLES = 32
ROBUST = {"average": "trimmed", "clip_updates": 2.0, "largest_loss": 1.5}


@pytest.fixture(scope="module")
def data() -> DeviceData:
    return images(4 * SAMPLES)


def after_a_round(kind: type[ClientTrainer], data: DeviceData) -> tuple[ClientTrainer, list[Any]]:
    trainer = kind(build_for(tiny_run()), 2, tiny_run(), "client", data)
    return trainer, list(trainer.round(1))


def simulation(run: RunSpec, hostile: str, data: DeviceData) -> Simulation:
    devices = {}
    for index in range(4):
        own = slice(index * SAMPLES, (index + 1) * SAMPLES)
        part = dataclasses.replace(data, train=ImageSet(data.train.images[own], data.train.labels[own]))
        devices[f"client-{index}"] = SimulatedDevice(1 + index % 2, part, "" if index else hostile)
    return Simulation(run, devices)


def test_flip_labels_sends_the_honest_labels_reversed(data: DeviceData) -> None:
    _, honest = after_a_round(ClientTrainer, data)
    _, sent = after_a_round(HOSTILE["flip-labels"], data)
    for mine, theirs in zip(sent, honest, strict=True):
        assert np.array_equal(mine.labels, 9 - theirs.labels)


def test_flip_sign_reverses_the_update_and_keeps_the_features(data: DeviceData) -> None:
    start = ClientTrainer(build_for(tiny_run()), 2, tiny_run(), "client", data).weights()
    start = {name: tensor.clone() for name, tensor in start.items()}
    honest, batches = after_a_round(ClientTrainer, data)
    hostile, sent = after_a_round(HOSTILE["flip-sign"], data)
    assert all(np.array_equal(one.features, two.features) for one, two in zip(sent, batches, strict=True))
    for name, tensor in hostile.weights().items():
        update = honest.weights()[name] - start[name]
        if name.endswith("running_var"):
            assert bool((tensor >= 0).all())
        elif tensor.is_floating_point():
            torch.testing.assert_close(tensor, start[name] - FLIP_SCALE * update)


def test_constant_client_sends_zeros_only(data: DeviceData) -> None:
    trainer, sent = after_a_round(HOSTILE["constant"], data)
    assert not any(tensor.any() for tensor in trainer.weights().values())
    assert not any(batch.features.any() for batch in sent)


def test_noise_has_the_shape_and_scale_of_the_honest_features(data: DeviceData) -> None:
    honest, batches = after_a_round(ClientTrainer, data)
    hostile, sent = after_a_round(HOSTILE["noise"], data)
    features, true = sent[0].features, batches[0].features
    assert features.shape == true.shape and features.dtype == true.dtype
    assert features.std() == pytest.approx(true.std(), rel=0.2)
    assert abs(np.corrcoef(features.ravel(), true.ravel())[0, 1]) < 0.1
    weights = hostile.weights()
    assert weights.keys() == honest.weights().keys()
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", HOSTILE)
def test_seed_decides_the_rounds_and_only_honest_clients_have_accuracies(
    kind: str, strategy: str, data: DeviceData
) -> None:
    run = tiny_run(strategy=strategy, **ROBUST)
    one, other = (simulation(run, kind, data) for _ in range(2))
    rounds = list(one.rounds())
    assert rounds == list(other.rounds())
    assert one.digest() == other.digest()
    assert list(rounds[-1].accuracies) == ["client-1", "client-2", "client-3"]
    honest = simulation(run, "", data)
    assert len(list(honest.rounds())[-1].accuracies) == 4
    assert honest.digest() != one.digest()


def test_names_of_the_command_line_are_the_registered_ones() -> None:
    """The command line names them before their modules are loaded."""
    assert tuple(HOSTILE) == names.HOSTILE
    assert tuple(BASELINES) == names.BASELINES
