# SPDX-License-Identifier: Apache-2.0
"""A third strategy, for tests: one trunk for each cut, which its devices train in turn."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from splitee.networks.split import SplitNetwork
from splitee.protocol.run_spec import RunSpec
from splitee_server.learning.averages import average_by_name
from splitee_server.learning.strategies.base import Strategy
from splitee_server.learning.strategies.registry import register


class TrunkPerCut(Strategy):
    """Trunks of different cuts are averaged layer by layer after each round."""

    def __init__(self, network: SplitNetwork, spec: RunSpec) -> None:
        super().__init__(network, spec)
        self._cut_of: dict[str, int] = {}
        self._trunks: dict[int, nn.Module] = {}
        self._optimizers: dict[int, torch.optim.Optimizer] = {}

    @property
    def order(self) -> Literal["step", "device", "any"]:
        return self._spec.order

    def join(self, device: str, cut: int) -> None:
        self._cut_of[device] = cut
        if cut not in self._trunks:
            self._trunks[cut] = copy.deepcopy(self._network.trunk(cut))
            self._optimizers[cut] = self._new_optimizer(self._trunks[cut])

    def trunk(self, device: str) -> nn.Module:
        return self._trunks[self._cut_of[device]]

    def shared_with(self, device: str) -> str:
        return f"of-cut-{self._cut_of[device]}"

    def optimizer(self, device: str) -> torch.optim.Optimizer:
        return self._optimizers[self._cut_of[device]]

    def aggregate(self, samples: Mapping[str, int]) -> None:
        counts: dict[str, int] = {}
        for device, count in samples.items():
            cut = str(self._cut_of[device])
            counts[cut] = counts.get(cut, 0) + count
        self.absorb(average_by_name({cut: self._trunks[int(cut)].state_dict() for cut in counts}, counts))

    def absorb(self, means: Mapping[str, Tensor]) -> None:
        for trunk in (*self._trunks.values(), self._network.trunk(1)):
            self._write(trunk, means)

    def move(self, device: str, cut: int, own: Mapping[str, Tensor]) -> None:
        """The device uses the trunk of its new cut unchanged."""
        self.join(device, cut)

    def weights(self) -> dict[str, Tensor]:
        return {
            f"{cut}/{name}": tensor
            for cut, trunk in self._trunks.items()
            for name, tensor in trunk.state_dict().items()
        }

    def state(self) -> dict[str, Any]:
        return {
            "joined": dict(self._cut_of),
            "by_cut": {cut: trunk.state_dict() for cut, trunk in self._trunks.items()},
            "optimizers": {cut: optimizer.state_dict() for cut, optimizer in self._optimizers.items()},
            "base": self._network.trunk(1).state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self._network.trunk(1).load_state_dict(state["base"])
        for device, cut in state["joined"].items():
            self.join(device, cut)
        for cut, trunk in self._trunks.items():
            trunk.load_state_dict(state["by_cut"][cut])
            self._optimizers[cut].load_state_dict(state["optimizers"][cut])


register("trunk-per-cut", __name__, "TrunkPerCut", settings=("order",))
