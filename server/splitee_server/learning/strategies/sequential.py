# SPDX-License-Identifier: Apache-2.0
"""Sequential: one shared trunk, trained by the devices' batches in turn; each enters it at its own stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from splitee.networks.split import SplitNetwork
from splitee.protocol.run_spec import RunSpec
from splitee_server.learning.strategies.base import Strategy


class Sequential(Strategy):
    """One trunk for all: least server memory."""

    def __init__(self, network: SplitNetwork, spec: RunSpec) -> None:
        super().__init__(network, spec)
        self._whole = network.trunk(1)
        self._optimizer = self._new_optimizer(self._whole)
        self._entries: dict[int, nn.Module] = {}  # by cut; all share the one trunk's parameters

    @property
    def order(self) -> Literal["step", "joint", "share", "device", "any"]:
        """With `--steps time:` devices have different numbers of batches, and should end together."""
        is_timed = self._spec.round_seconds and self._spec.order == "step"
        return "share" if is_timed else self._spec.order

    def join(self, device: str, cut: int) -> None:
        self._cuts[device] = cut
        if cut not in self._entries:
            self._entries[cut] = self._new_trunk(cut)

    def trunk(self, device: str) -> nn.Module:
        return self._entries[self._cuts[device]]

    def shared_with(self, device: str) -> str:
        return f"cut-{self._cuts[device]}"

    def optimizer(self, device: str) -> torch.optim.Optimizer:
        return self._optimizer

    def aggregate(self, samples: Mapping[str, int]) -> None:
        """Nothing to do: all devices share the trunk."""

    def absorb(self, means: Mapping[str, Tensor]) -> None:
        self._write(self._whole, means)

    def move(self, device: str, cut: int, own: Mapping[str, Tensor]) -> None:
        """A stage that others already train in the trunk stays as it is there."""
        shallowest = min(self._cuts.values())
        coming = set(self._network.stage_keys(cut + 1, shallowest))
        self._write(self._whole, {name: tensor for name, tensor in own.items() if name in coming})
        for name, parameter in self._whole.named_parameters():
            if name in coming:
                self._optimizer.state.pop(parameter, None)  # of an earlier time in the trunk
        self.join(device, cut)

    def weights(self) -> dict[str, Tensor]:
        return self._entries[min(self._cuts.values())].state_dict() if self._cuts else {}

    def state(self) -> dict[str, Any]:
        return {
            "cuts": dict(self._cuts),
            "trunk": self._whole.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        for device, cut in state["cuts"].items():
            self.join(device, cut)
        self._whole.load_state_dict(state["trunk"])
        self._optimizer.load_state_dict(state["optimizer"])
