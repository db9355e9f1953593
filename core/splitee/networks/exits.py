# SPDX-License-Identifier: Apache-2.0
"""The exit: a light classifier on the features at a cut, which lets a device predict by itself."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn


class ExitHead(nn.Module):
    """Averages the features over halves of each axis but the channels, normalises them; one linear layer.

    For image features (C, H, W) these are the means of four quarters: 4 C numbers. They are normalised over
    the batch, because the linear layer learns slowly from means that are all positive and nearly equal.

    Takes features (B, *feature_shape) and gives logits (B, num_classes). `channel_axis` counts within
    feature_shape: 0 for image maps (C, H, W) and flat features (C,), 1 for token sequences (T, C), 2 for
    channels-last maps (H, W, C); `Stage.channel_axis` has it.
    """

    def __init__(self, feature_shape: tuple[int, ...], num_classes: int, *, channel_axis: int = 0) -> None:
        super().__init__()
        self.pooled = tuple(1 + axis for axis in range(len(feature_shape)) if axis != channel_axis)
        inputs = exit_inputs(feature_shape, channel_axis)
        self.norm = nn.BatchNorm1d(inputs, affine=False)
        self.linear = nn.Linear(inputs, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(self.norm(self._means(features)))  # type: ignore[no-any-return]

    def _means(self, features: Tensor) -> Tensor:
        cells = [features]
        for axis in self.pooled:
            cells = [half for cell in cells for half in cell.tensor_split(_parts(cell.shape[axis]), axis)]
        means = [cell.mean(self.pooled) if self.pooled else cell for cell in cells]  # (B, C) each
        return torch.cat(means, dim=1)  # (B, cells C)


def exit_inputs(feature_shape: tuple[int, ...], channel_axis: int) -> int:
    """Number of inputs of the exit's linear layer."""
    cells = prod(_parts(size) for axis, size in enumerate(feature_shape) if axis != channel_axis)
    return cells * feature_shape[channel_axis]


def _parts(size: int) -> int:
    return min(2, size)


def exit_head(
    feature_shape: tuple[int, ...], num_classes: int, *, seed: int = 0, channel_axis: int = 0
) -> ExitHead:
    """A new exit whose weights depend on the seed alone; the global random state does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return ExitHead(feature_shape, num_classes, channel_axis=channel_axis)
