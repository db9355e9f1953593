# SPDX-License-Identifier: Apache-2.0
"""DataParallel: one shared trunk, whose steps combine a batch of each device, whatever their cuts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from splitee.networks.split import SplitNetwork
from splitee.protocol.run_spec import RunSpec
from splitee.training.optimizer import forget_gradients
from splitee_server.learning.lanes import LANES, lane_of
from splitee_server.learning.reduction import LaneSums, Partial
from splitee_server.learning.strategies.sequential import Sequential


class Named(NamedTuple):
    """What a trunk has that a batch changes, by name: weights, and BatchNorm's statistics and counters."""

    parameters: Mapping[str, nn.Parameter]
    buffers: Mapping[str, Tensor]


class DataParallel(Sequential):
    """Sequential's one trunk, with synchronous steps, as if on one large batch.

    In step s each device's batch s goes through the trunk as the previous step has left it. The gradient of a
    stage is the mean over the samples that have passed through it; so are BatchNorm's new running statistics,
    while each batch is normalised by its own. Gradients are clipped per batch, so that no device dominates a
    step. A device with fewer steps than others takes part in the first ones. The batch of a device that drops
    out counts if it is already in the step.

    Sums are those of `LaneSums`: a process with a range of lanes gives its sums to the one that ends a step.
    """

    def __init__(self, network: SplitNetwork, spec: RunSpec) -> None:
        super().__init__(network, spec)
        self._all = _named(self._whole, network.frozen_keys)
        self._named: dict[int, Named] = {}  # of the entries, by cut
        self._before: dict[str, Tensor] = {}  # the statistics before a batch
        self._sums: LaneSums | None = None  # of the step under way
        self._at = (0, 0, 0)  # round, step, and the largest number of steps of a device in it

    @property
    def order(self) -> Literal["joint"]:
        return "joint"

    def join(self, device: str, cut: int) -> None:
        super().join(device, cut)
        if cut not in self._named:
            self._named[cut] = _named(self._entries[cut], self._network.frozen_keys)

    def begin_step(self, step: int) -> None:
        """The previous step is complete: devices without a batch in it have fewer, or have dropped out."""
        if step != self._at[1]:
            self.end_step()

    def _before_step(self, device: str, samples: int, step: int) -> None:
        buffers = self._named[self._cuts[device]].buffers
        self._before = {name: buffer.clone() for name, buffer in buffers.items()}

    @torch.no_grad()
    def _use_gradient(self, device: str, samples: int, round_number: int, step: int, steps: int) -> None:
        if self._sums is None:
            self._sums, self._at = LaneSums(lane_of(device), torch.float32), (round_number, step, 0)
        self._at = max(self._at, (round_number, step, steps))
        parameters, buffers = self._named[self._cuts[device]]
        seen = {name: one.grad for name, one in parameters.items() if one.grad is not None}
        seen |= {name: buffer.clone() for name, buffer in buffers.items()}
        self._sums.add(device, seen, samples, takes_over=True)
        for name, buffer in buffers.items():
            buffer.copy_(self._before[name])

    def abandon_round(self) -> None:
        self._sums = None

    def aggregate(self, samples: Mapping[str, int]) -> None:
        self.end_step()

    def part_of_step(self, lanes: range = range(LANES)) -> dict[str, Any]:
        own, self._sums = self._sums, None
        sums = LaneSums(lanes.start)
        sums.merge([] if own is None else own.partials())
        return {"at": self._at, "sums": [vars(node) for node in sums.partials(lanes.stop)]}

    @torch.no_grad()
    def end_step(self, *others: Mapping[str, Any], lanes: range = range(LANES)) -> dict[str, Tensor]:
        parts = [part for part in (self.part_of_step(lanes), *others) if part["sums"]]
        if not parts:
            return {}
        sums = LaneSums()
        sums.merge(Partial(**node) for part in parts for node in part["sums"])
        means = sums.means()
        parameters, buffers = self._all
        for name in means.keys() & parameters.keys():
            parameters[name].grad = means[name].to(parameters[name].dtype)
        for name in means.keys() & buffers.keys():
            buffers[name].copy_(means[name])
        self._step(self._optimizer, *max(tuple(part["at"]) for part in parts))
        forget_gradients(self._optimizer)
        return {**parameters, **buffers}

    def move_to(self, places: Mapping[str, Tensor]) -> None:
        for name, parameter in self._all.parameters.items():
            if name in places:
                parameter.data = places[name]

    def follow_step(self, changed: Mapping[str, Tensor]) -> None:
        self._write(self._whole, changed)

    def phase_state(self, devices: Iterable[str], *, averages: bool) -> dict[str, Any]:
        return {
            "trunk": self._whole.state_dict() if averages else {},
            "cuts": {device: self._cuts[device] for device in devices},
        }

    def load_phase_state(self, state: Mapping[str, Any]) -> None:
        self._sums = None
        self._write(self._whole, state["trunk"])
        for device, cut in state["cuts"].items():
            self.join(device, cut)

    def momentum_state(self, device: str) -> dict[str, Any]:
        """Nothing: the process that ends steps has the optimizer."""
        return {}

    def load_momentum_state(self, device: str, state: Mapping[str, Any]) -> None:
        """Nothing to do."""

    def round_result(self, device: str) -> dict[str, Any]:
        """Nothing: its training is in the joint steps."""
        return {}

    def load_round_result(self, device: str, state: Mapping[str, Any]) -> None:
        """Nothing to do."""


def _named(trunk: nn.Module, frozen: Iterable[str]) -> Named:
    """The tensors that are not frozen."""
    kept = set(frozen)
    parameters = {name: one for name, one in trunk.named_parameters() if name not in kept}
    return Named(parameters, {name: one for name, one in trunk.named_buffers() if name not in kept})
