# SPDX-License-Identifier: Apache-2.0
"""What each training step needs of a trunk, collected once; and copies of trunks that share a graph."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

from torch import nn
from torch.fx import GraphModule

from splitee.networks.frozen import set_training


def copied(trunk: nn.Module) -> nn.Module:
    """A copy of the trunk with weights of its own, which shares the graph and the code of `trunk`.

    `copy.deepcopy` generates the code anew, which takes longer than a small network's training step. The code
    is kept in the class. A trunk with a graph for each mode changes it there, so each copy has its own class.
    """
    if not isinstance(trunk, GraphModule):
        return copy.deepcopy(trunk)
    kind = type(trunk)
    other: GraphModule = object.__new__(type(kind.__name__, kind.__bases__, {"forward": kind.forward}))
    other.__dict__.update(vars(trunk))
    memo: dict[int, Any] = {}  # parts that are shared within the trunk stay shared
    for held in ("_parameters", "_buffers", "_modules"):
        other.__dict__[held] = copy.deepcopy(vars(trunk)[held], memo)
    return other


class TrunkParts:
    """A trunk's weights and buffers, and the modes of its layers in training.

    Collecting them takes as long as a small network's forward pass. The trunk itself is not kept.

    Attributes:
        parameters: all weights, frozen ones too.
        buffers: BatchNorm's statistics, and others.
    """

    def __init__(self, trunk: nn.Module, frozen: Collection[str]) -> None:
        """Puts `trunk` into training mode. `frozen`: paths of layers, as for `set_training`."""
        set_training(trunk, frozen)
        self._frozen = frozen
        self._modes = [(part, part.training) for part in trunk.modules() if part is not trunk]
        self.parameters = list(trunk.parameters())
        self.buffers = list(trunk.buffers())

    def set_training(self, trunk: nn.Module) -> None:
        """Restore training mode, if an evaluation has changed it; layers are shared with other trunks."""
        if not trunk.training or any(part.training != mode for part, mode in self._modes):
            set_training(trunk, self._frozen)
