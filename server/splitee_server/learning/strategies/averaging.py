# SPDX-License-Identifier: Apache-2.0
"""Averaging: a trunk per device, trained by its own batches, averaged layer by layer every so often."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from splitee.networks.split import SplitNetwork
from splitee.protocol.run_spec import RunSpec
from splitee_server.learning.averages import average_by_name, weigh
from splitee_server.learning.clipping import clip_updates
from splitee_server.learning.means import Rule
from splitee_server.learning.strategies.base import Strategy


class Averaging(Strategy):
    """A trunk per device; the network that new trunks are copied from holds the last averages."""

    def __init__(self, network: SplitNetwork, spec: RunSpec) -> None:
        super().__init__(network, spec)
        self._trunks: dict[str, nn.Module] = {}
        self._optimizers: dict[str, torch.optim.Optimizer] = {}
        self._period = 0  # of the round, from 0
        self._trained: dict[str, int] = {}  # samples by device, in this period

    @property
    def order(self) -> Literal["step", "device", "any"]:
        """Averages within a round need all devices at the same step."""
        return "step" if self._spec.aggregation_every else "any"

    def join(self, device: str, cut: int) -> None:
        if device in self._trunks and self._cuts[device] == cut:
            return
        self._cuts[device] = cut
        self._trunks[device] = copy.deepcopy(self._new_trunk(cut))
        self._optimizers[device] = self._new_optimizer(self._trunks[device])

    def trunk(self, device: str) -> nn.Module:
        return self._trunks[device]

    def shared_with(self, device: str) -> str:
        return device

    def optimizer(self, device: str) -> torch.optim.Optimizer:
        return self._optimizers[device]

    def _before_step(self, device: str, samples: int, step: int) -> None:
        every = self._spec.aggregation_every
        if every and step // every > self._period:
            self._average(self._trained)
            self._period, self._trained = step // every, {}
        self._trained[device] = self._trained.get(device, 0) + samples

    def aggregate(self, samples: Mapping[str, int]) -> None:
        """Average each stage over the devices that trained it, and write it back to all that hold it."""
        self._average(samples)
        self._period, self._trained = 0, {}

    def _average(self, samples: Mapping[str, int]) -> None:
        holders = {device: self.trained(device) for device, count in samples.items() if count}
        if self._spec.clip_updates:
            last = self._network.trunk(1).state_dict()
            clip_updates(holders, dict.fromkeys(holders, last), self._spec.clip_updates)
        weights = weigh(samples, self._spec.weighting)
        self.absorb(average_by_name(holders, weights, Rule.of(self._spec)))

    def absorb(self, means: Mapping[str, Tensor]) -> None:
        for trunk in (*self._trunks.values(), self._network.trunk(1)):
            self._write(trunk, means)

    def move(self, device: str, cut: int, own: Mapping[str, Tensor]) -> None:
        """The device's trunk keeps its stages; their momentum starts anew."""
        before = self._trunks.pop(device).state_dict()
        self.join(device, cut)
        self._write(self._trunks[device], {**own, **before})

    def weights(self) -> dict[str, Tensor]:
        return {
            f"{device}/{name}": tensor
            for device, trunk in self._trunks.items()
            for name, tensor in trunk.state_dict().items()
        }

    def state(self) -> dict[str, Any]:
        return {
            "cuts": dict(self._cuts),
            "base": self._network.trunk(1).state_dict(),
            "trunks": {device: trunk.state_dict() for device, trunk in self._trunks.items()},
            "optimizers": {device: optimizer.state_dict() for device, optimizer in self._optimizers.items()},
        }

    def load(self, state: dict[str, Any]) -> None:
        self._network.trunk(1).load_state_dict(state["base"])
        for device, cut in state["cuts"].items():
            self.join(device, cut)
            self._trunks[device].load_state_dict(state["trunks"][device])
            self._optimizers[device].load_state_dict(state["optimizers"][device])
