# SPDX-License-Identifier: Apache-2.0
"""What each training step needs of a trunk, found once."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from splitee.networks.frozen import set_training


class TrunkParts:
    """A trunk's weights and buffers, and the modes of its layers in training.

    To look for them in a network takes as long as a small one's forward pass. The trunk itself is not kept.

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
        """Training mode again, where an evaluation has changed it; layers are shared with other trunks."""
        if not trunk.training or any(part.training != mode for part, mode in self._modes):
            set_training(trunk, self._frozen)
