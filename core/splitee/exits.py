"""The exit: a light classifier on the features at a cut, which lets a device answer by itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ExitHead(nn.Module):
    """Averages the features over all axes but the channels, normalises each over the batch, one linear layer.

    Without the normalisation the averages, all positive and nearly equal, make the linear layer learn slowly.
    Takes features (B, *feature_shape) and gives logits (B, num_classes). `channel_axis` counts within
    feature_shape: 0 for image maps (C, H, W) and flat features (C,), 1 for token sequences (T, C), 2 for
    channels-last maps (H, W, C); `Stage.channel_axis` has it.
    """

    def __init__(self, feature_shape: tuple[int, ...], num_classes: int, *, channel_axis: int = 0) -> None:
        super().__init__()
        self.pooled = tuple(1 + axis for axis in range(len(feature_shape)) if axis != channel_axis)
        self.norm = nn.BatchNorm1d(feature_shape[channel_axis], affine=False)
        self.linear = nn.Linear(feature_shape[channel_axis], num_classes)

    def forward(self, features: Tensor) -> Tensor:
        pooled = features.mean(self.pooled) if self.pooled else features  # (B, C)
        return self.linear(self.norm(pooled))  # type: ignore[no-any-return]


def exit_head(
    feature_shape: tuple[int, ...], num_classes: int, *, seed: int = 0, channel_axis: int = 0
) -> ExitHead:
    """A new exit whose weights the seed alone decides; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return ExitHead(feature_shape, num_classes, channel_axis=channel_axis)
