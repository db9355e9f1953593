# SPDX-License-Identifier: Apache-2.0
"""One round of a small fleet, which every network must pass to be trained in a fleet."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from splitee.networks.split import build_network
from splitee.protocol.rounds import Weights
from splitee.protocol.run_spec import RunSpec
from splitee.samples.fitting import Shape
from splitee.training.weights import WeightsAssembler, check_messages, pack_weights
from splitee_device.data.images import open_data
from splitee_lab.methods.simulation import SimulatedDevice, Simulation

IMAGES = 8  # per batch, and per device


def train_one_round(name: str, input_shape: Shape, depths: Sequence[float] = (0.5,)) -> None:
    """Train one round with a device for each of `depths`: its cut, as a share of the network's stages.

    Then stages are averaged over their devices, the devices are evaluated, and their weights must be equal
    after packing and unpacking.
    """
    torch.set_num_threads(1)
    described = build_network(name, num_classes=10, input_shape=input_shape, device="meta")
    spec = RunSpec(
        protocol=1,
        run="one-round",
        network=name,
        num_classes=10,
        input_shape=input_shape,
        rounds=1,
        batch_size=IMAGES,
        learning_rate=1e-3,
        client_averaging="layerwise",
    )
    data = open_data("builtin:fashion-mnist", input_shape=input_shape, limit=IMAGES)
    devices = {
        f"pi-{depth}": SimulatedDevice(max(int(depth * described.num_layers), 1), data) for depth in depths
    }
    simulation = Simulation(spec, devices)
    (done,) = simulation.rounds()
    assert all(map(math.isfinite, (*done.trunk_loss.values(), *done.exit_loss.values())))
    assert done.accuracies.keys() == devices.keys()
    for weights in (trainer.weights() for trainer in simulation._trainers.values()):
        check_there_and_back(weights)


def check_there_and_back(weights: dict[str, Tensor]) -> None:
    """Check that weights are equal after packing. Raises ConfigError: a tensor exceeds a message."""
    check_messages(weights)
    assembler = WeightsAssembler(weights)
    for payload in pack_weights("one-round", 1, 1, weights):
        assembler.add(Weights.decode(payload))
    assert not assembler.missing
    assert all(tensor.equal(weights[name]) for name, tensor in assembler.tensors.items())
