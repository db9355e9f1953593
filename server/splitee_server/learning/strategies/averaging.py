# SPDX-License-Identifier: Apache-2.0
"""Averaging: a trunk per device, trained by its own batches, averaged layer by layer every so often."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from splitee.networks.split import SplitNetwork
from splitee.protocol.run_spec import RunSpec
from splitee.training.sharing import equal_bits
from splitee.training.state import COUNTER
from splitee_server.learning.averages import average_by_name, weigh
from splitee_server.learning.clipping import clip_updates
from splitee_server.learning.lanes import in_order
from splitee_server.learning.means import Rule
from splitee_server.learning.reduction import LaneSums
from splitee_server.learning.strategies.base import Strategy
from splitee_server.learning.trunk_parts import copied


class InTraining(NamedTuple):
    """A device's own trunk while it trains."""

    trunk: nn.Module
    optimizer: torch.optim.Optimizer

    def free(self) -> None:
        """Free its memory at once: modules are in reference cycles, which are collected only later."""
        self.optimizer.state.clear()
        for tensor in (*self.trunk.parameters(), *self.trunk.buffers()):
            tensor.grad, tensor.data = None, tensor.new_empty(0)


class Averaging(Strategy):
    """A trunk per device while it trains in a round; between rounds all devices share the averages.

    The averages are in the network that trunks are made of, which each device enters at its cut. For each
    device only differences are kept: how many batches its BatchNorm layers have seen, its optimizer's state
    if momentum is kept, and, until the next average, stages that a change of its cut added to its trunk.
    """

    def __init__(self, network: SplitNetwork, spec: RunSpec) -> None:
        super().__init__(network, spec)
        self._entries: dict[int, nn.Module] = {}  # by cut; they share the averages' tensors
        self._own: dict[str, dict[str, Tensor]] = {}  # by device, in place of the averages
        self._counters: dict[str, dict[str, int]] = {}  # of its BatchNorm layers, by device
        self._momentum: dict[str, dict[str, Any]] = {}  # states of optimizers by device
        self._in_training: dict[str, InTraining] = {}
        self._sums: LaneSums | None = None  # of trunks that have finished the round and were freed
        self._period = 0  # of the round, from 0
        self._trained: dict[str, int] = {}  # samples by device, in this period

    @property
    def order(self) -> Literal["step", "device", "any"]:
        """Averages within a round need all devices at the same step."""
        return "step" if self._spec.aggregation_every else "any"

    def join(self, device: str, cut: int) -> None:
        if device not in self._cuts:
            self._enter(device, cut)

    def _enter(self, device: str, cut: int) -> None:
        self._cuts[device] = cut
        if cut not in self._entries:
            self._entries[cut] = self._new_trunk(cut)

    def trunk(self, device: str) -> nn.Module:
        if device in self._in_training:
            return self._in_training[device].trunk
        return self._copy(device) if self._own.get(device) else self._entries[self._cuts[device]]

    def _copy(self, device: str) -> nn.Module:
        """The device's trunk between rounds, with tensors of its own."""
        trunk = copied(self._entries[self._cuts[device]])
        self._write(trunk, self._differences(device))
        return trunk

    def _differences(self, device: str) -> dict[str, Tensor]:
        """What replaces the averages for a device."""
        counters = self._counters.get(device, {}).items()
        return {**self._own.get(device, {}), **{name: torch.tensor(count) for name, count in counters}}

    def shared_with(self, device: str) -> str:
        """Devices with the same cut share their trunk between rounds, except one that has moved."""
        return device if self._own.get(device) else f"cut-{self._cuts[device]}"

    def optimizer(self, device: str) -> torch.optim.Optimizer:
        return self._in_training[device].optimizer

    def _before_step(self, device: str, samples: int, step: int) -> None:
        every = self._spec.aggregation_every
        if every and step // every > self._period:
            self._average(self._trained)
            self._period, self._trained = step // every, {}
        if device not in self._in_training:
            self._begin(device)

    def _use_gradient(self, device: str, samples: int, round_number: int, step: int, steps: int) -> None:
        super()._use_gradient(device, samples, round_number, step, steps)
        self._trained[device] = self._trained.get(device, 0) + samples

    def _begin(self, device: str) -> None:
        trunk = self._copy(device)
        optimizer = self._new_optimizer(trunk)
        if device in self._momentum:
            optimizer.load_state_dict(self._momentum.pop(device))
        self._in_training[device] = InTraining(trunk, optimizer)

    def sum_up(self, device: str, samples: int) -> None:
        """A device has finished the round: add its trunk to the next average, and free it.

        Devices come in the order of `in_order`; those for which `aggregate` calls this come after the others.

        Args:
            samples: number that its trunk was trained on; 0: it does not count.
        """
        if self._sums is None:
            self._sums = LaneSums()
        if samples:
            weight = weigh({device: samples}, self._spec.weighting)[device]
            tensors = self.trained(device).items()
            averaged = {name: tensor for name, tensor in tensors if not name.endswith(COUNTER)}
            self._sums.add(device, averaged, weight)
        self._keep(device)

    def forget(self, device: str) -> None:
        """Discards its momentum, too, whether its training had begun or not.

        A trunk that has already been summed up counts.
        """
        self._free(device)
        self._momentum.pop(device, None)
        self._trained.pop(device, None)

    def abandon_round(self) -> None:
        self._sums, self._period, self._trained = None, 0, {}

    def aggregate(self, samples: Mapping[str, int]) -> None:
        """Average each stage over the devices that trained it; from here on all devices share it.

        The training of devices that have not finished the round is discarded, with their momentum.
        """
        if self._sums is None:
            self._average(samples)
            for device in samples:
                self._keep(device)
        else:
            for device in in_order(samples.keys() & self._in_training.keys()):
                self.sum_up(device, samples[device])
            means, self._sums = self._sums.means(), None
            self.absorb(means)
        for device in list(self._in_training):
            self._free(device)
        self._period, self._trained = 0, {}

    def _average(self, samples: Mapping[str, int]) -> None:
        holders = {device: self.trained(device) for device, count in samples.items() if count}
        if self._spec.clip_updates:
            last = self._network.trunk(1).state_dict()
            clip_updates(holders, dict.fromkeys(holders, last), self._spec.clip_updates)
        weights = weigh(samples, self._spec.weighting)
        self.absorb(average_by_name(holders, weights, Rule.of(self._spec)))

    def _keep(self, device: str) -> None:
        """Free the device's trunk; keep its counters and its momentum for the next round."""
        if device not in self._in_training:
            return
        training = self._in_training[device]
        tensors = training.trunk.state_dict()
        self._counters[device] = {name: int(one) for name, one in tensors.items() if name.endswith(COUNTER)}
        if self._spec.trunk_momentum == "kept":
            self._momentum[device] = training.optimizer.state_dict()
        self._free(device)

    def _free(self, device: str) -> None:
        if device in self._in_training:
            self._in_training.pop(device).free()

    def absorb(self, means: Mapping[str, Tensor]) -> None:
        trunks = [training.trunk for training in self._in_training.values()]
        for trunk in (*trunks, self._network.trunk(1)):
            self._write(trunk, means)
        for device, own in self._own.items():
            self._own[device] = {name: tensor for name, tensor in own.items() if name not in means}

    def move(self, device: str, cut: int, own: Mapping[str, Tensor]) -> None:
        """The device's trunk keeps its stages; its momentum is discarded."""
        before = self.tensors(device)
        self._in_training.pop(device, None)
        self._momentum.pop(device, None)
        self._enter(device, cut)
        self._set(device, {**own, **before})

    def _set(self, device: str, tensors: Mapping[str, Tensor]) -> None:
        """Give the device, between rounds, those of `tensors` that its trunk has."""
        averages = self._entries[self._cuts[device]].state_dict()
        having = {name: tensor for name, tensor in tensors.items() if name in averages}
        self._counters[device] = {name: int(one) for name, one in having.items() if name.endswith(COUNTER)}
        self._own[device] = {
            name: tensor.clone()
            for name, tensor in having.items()
            if not (name.endswith(COUNTER) or equal_bits(tensor, averages[name]))
        }

    def tensors(self, device: str) -> dict[str, Tensor]:
        """Those of its trunk in training, or else the averages with the device's differences."""
        found = super().tensors(device)
        return found if device in self._in_training else found | self._differences(device)

    def weights(self) -> dict[str, Tensor]:
        return {
            f"{device}/{name}": tensor
            for device in self._cuts
            for name, tensor in self.tensors(device).items()
        }

    def phase_state(self, devices: Iterable[str], *, averages: bool) -> dict[str, Any]:
        return {
            "averages": self._network.trunk(1).state_dict() if averages else {},
            "devices": {
                device: {
                    "cut": self._cuts[device],
                    "own": dict(self._own.get(device, {})),
                    "counters": dict(self._counters.get(device, {})),
                }
                for device in devices
            },
        }

    def load_phase_state(self, state: Mapping[str, Any]) -> None:
        self._in_training, self._trained = {}, {}
        if state["averages"]:
            self._network.trunk(1).load_state_dict(state["averages"])
        for device, lent in state["devices"].items():
            self._enter(device, lent["cut"])
            self._own[device], self._counters[device] = lent["own"], lent["counters"]

    def momentum_state(self, device: str) -> dict[str, Any]:
        return self._momentum.get(device, {})

    def load_momentum_state(self, device: str, state: Mapping[str, Any]) -> None:
        self._momentum.pop(device, None)
        if state:
            self._momentum[device] = dict(state)

    def round_result(self, device: str) -> dict[str, Any]:
        if device not in self._in_training:
            return {}
        trunk = self.tensors(device)
        self._keep(device)
        return {"trunk": trunk, "momentum": self._momentum.get(device, {})}

    def load_round_result(self, device: str, state: Mapping[str, Any]) -> None:
        if not state:
            return
        self.load_momentum_state(device, state["momentum"])
        self._begin(device)
        self._in_training[device].trunk.load_state_dict(state["trunk"])

    def state(self) -> dict[str, Any]:
        """As of the end of a round: what differs from the averages, by device."""
        return {
            "cuts": dict(self._cuts),
            "base": self._network.trunk(1).state_dict(),
            "trunks": {device: dict(own) for device, own in self._own.items() if own},
            "counters": {device: dict(counters) for device, counters in self._counters.items()},
            "optimizers": dict(self._momentum),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Also loads earlier releases' commits, which hold each device's whole trunk, with its counters."""
        self._network.trunk(1).load_state_dict(state["base"])
        for device, cut in state["cuts"].items():
            self._enter(device, cut)
            self._set(device, state["trunks"].get(device, {}))
        self._counters |= {device: dict(own) for device, own in state.get("counters", {}).items()}
        if self._spec.trunk_momentum == "kept":
            self._momentum = dict(state["optimizers"])
