# SPDX-License-Identifier: Apache-2.0
"""Training mode for networks of which some stages are frozen."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn


def set_training(part: nn.Module, frozen: Collection[str]) -> None:
    """Set training mode except in frozen layers, where BatchNorm keeps its statistics and dropout is off.

    Args:
        part: a network, or stages of it.
        frozen: paths of layers in the network, as `SplitNetwork.frozen_modules` has them.
    """
    part.train()
    if frozen:
        for path, module in part.named_modules():
            if path in frozen:
                module.eval()
