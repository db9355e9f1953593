# SPDX-License-Identifier: Apache-2.0
"""A server's models and devices with random features and weights, small enough to average by hand."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from splitee.networks.split import build_network
from splitee.protocol.run_spec import RunSpec
from splitee.training.sharing import leaves
from splitee.training.state import pack_state, unpack_state, weights_digest
from splitee.training.weights import CLIENT, client_model
from splitee_server.learning.fleet_model import Contribution, FleetModel

CUTS = {"a": 1, "b": 2, "c": 2, "d": 3}
IMAGES = {"a": 20, "b": 5, "c": 15, "d": 10}  # images per batch, by device
STEPS = 2  # batches in a round
SAMPLES = {device: STEPS * count for device, count in IMAGES.items()}  # samples per round, by device
BATCH = 20  # largest batch
NETWORK = build_network("tiny_networks:tiny", num_classes=10)
STRATEGIES = pytest.mark.parametrize("strategy", ["sequential", "averaging"])


@cache
def initial(cut: int) -> dict[str, Tensor]:
    """Initial weights of a client network and its exit, by name."""
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
    """A model, and devices that send random features and weights."""

    def __init__(
        self, strategy: str, averaging: Any = "layerwise", cuts: Mapping[str, int] = CUTS, **settings: Any
    ) -> None:
        self.spec = spec(strategy, averaging, **settings)
        self.cuts = dict(cuts)
        self.model = FleetModel(self.spec, copy.deepcopy(NETWORK))
        for device, cut in cuts.items():
            self.model.join(device, cut, IMAGES[device])

    def restarted(self) -> Fleet:
        """The same fleet after a restart of the server, which loads its last commit."""
        other = copy.copy(self)
        other.cuts, other.model = dict(self.cuts), FleetModel(self.spec, copy.deepcopy(NETWORK))
        other.model.load(unpack_state(pack_state(self.model.state())))
        for device, cut in self.cuts.items():
            other.model.join(device, cut, IMAGES[device])
        return other

    def train(self, number: int, *devices: str) -> dict[str, dict[str, Tensor]]:
        """Train a round of these devices, all by default; returns the client networks that they send."""
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
        """A copy of the weights of the device's trunk."""
        network, weights = self.model.network, self.model.trunk_weights()
        names = network.stage_keys(self.cuts[device] + 1, network.num_layers)
        own = f"{device}/" if self.spec.strategy == "averaging" else ""
        return {name: weights[own + name].clone() for name in names}

    def whole(self, device: str, client: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A copy of the weights of the device's whole network: client network and trunk."""
        stages = {n.removeprefix(CLIENT): t.clone() for n, t in client.items() if n.startswith(CLIENT)}
        return {**stages, **self.trunk(device)}


def digests_of(model: FleetModel) -> dict[str, str]:
    """All values of a commit's state by path: plain ones as text, tensors as digests."""
    return {
        "/".join(map(str, path)): weights_digest({"": value}) if isinstance(value, Tensor) else repr(value)
        for path, value in leaves(model.state())
    }


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def mean(holders: Mapping[str, Mapping[str, Tensor]], name: str) -> Any:
    """Mean of a tensor over the devices that have it, weighted by their samples."""
    devices = [device for device, tensors in holders.items() if name in tensors]
    values = [holders[device][name].double().numpy() for device in devices]
    return np.average(values, axis=0, weights=[SAMPLES[device] for device in devices])


def observed(fleet: Fleet, generator: torch.Generator) -> dict[str, dict[str, Tensor]]:
    """Let the trunks observe two batches per device; returns random statistics of the client networks."""
    found = {}
    for device, cut in fleet.cuts.items():
        for step in range(2):
            fleet.model.observe(device, fleet.features(device, generator), round_number=1, step=step)
        names = fleet.model.statistics_assembler(cut).missing
        own = fleet.model.client(device)
        found[device] = {name: torch.rand(own[name].shape, generator=generator) for name in names}
    return found
