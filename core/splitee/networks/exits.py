"""The exit: a light classifier on the features at a cut, which lets a device predict by itself."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from splitee.protocol.fields import ExitKind

WIDER = 2  # times as many channels leave the block of a convolutional exit


class PooledExit(nn.Module):
    """Averages the features over halves of each axis but the channels, normalises them, one linear layer.

    So of an image map (C, H, W) it sees the means of four quarters: 4 C numbers. They are normalised over the
    batch, for means that are all positive and nearly equal make the linear layer learn slowly.

    Takes features (B, *feature_shape) and gives logits (B, num_classes). `channel_axis` counts within
    feature_shape: 0 for image maps (C, H, W) and flat features (C,), 1 for token sequences (T, C), 2 for
    channels-last maps (H, W, C); `Stage.channel_axis` has it.
    """

    def __init__(self, feature_shape: tuple[int, ...], num_classes: int, *, channel_axis: int = 0) -> None:
        super().__init__()
        self.pooled = tuple(1 + axis for axis in range(len(feature_shape)) if axis != channel_axis)
        inputs = _inputs(feature_shape, channel_axis)
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


class ConvolutionalExit(nn.Module):
    """A depthwise-separable 3x3 convolution to half the sides and twice the channels, then a pooled exit.

    Takes image maps (B, C, H, W) and gives logits (B, num_classes). The block is that of MobileNets (Howard
    et al. 2017, arXiv 1704.04861) without the normalisation between its two convolutions.
    """

    def __init__(self, feature_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        channels, wide = feature_shape[0], WIDER * feature_shape[0]
        self.block = nn.Sequential(
            nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels, bias=False),
            nn.Conv2d(channels, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
        )
        self.head = PooledExit(_after_block(feature_shape), num_classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.head(self.block(features))  # type: ignore[no-any-return]


Exit = PooledExit | ConvolutionalExit


def exit_head(
    feature_shape: tuple[int, ...],
    num_classes: int,
    *,
    seed: int = 0,
    channel_axis: int = 0,
    kind: ExitKind = "pooled",
) -> Exit:
    """A new exit whose weights the seed alone decides; the global random state is left as it was.

    Where features are no image maps, a convolutional exit is a pooled one.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if kind == "convolutional" and _is_map(feature_shape, channel_axis):
            return ConvolutionalExit(feature_shape, num_classes)
        return PooledExit(feature_shape, num_classes, channel_axis=channel_axis)


def exit_macs(
    feature_shape: tuple[int, ...], num_classes: int, *, channel_axis: int = 0, kind: ExitKind = "pooled"
) -> int:
    """Multiply-accumulates of an exit on one sample's features, of its convolutions and its linear layer."""
    if kind == "pooled" or not _is_map(feature_shape, channel_axis):
        return _inputs(feature_shape, channel_axis) * num_classes
    channels = feature_shape[0]
    after = _after_block(feature_shape)
    return prod(after[1:]) * channels * (9 + after[0]) + _inputs(after, 0) * num_classes


def _is_map(feature_shape: tuple[int, ...], channel_axis: int) -> bool:
    """Whether these are image maps (C, H, W) of more than a pixel."""
    return len(feature_shape) == 3 and channel_axis == 0 and min(feature_shape[1:]) > 1


def _after_block(feature_shape: tuple[int, ...]) -> tuple[int, ...]:
    channels, *sides = feature_shape
    return (WIDER * channels, *(-(-side // 2) for side in sides))


def _inputs(feature_shape: tuple[int, ...], channel_axis: int) -> int:
    """How many numbers of a sample reach a pooled exit's linear layer."""
    cells = prod(_parts(size) for axis, size in enumerate(feature_shape) if axis != channel_axis)
    return cells * feature_shape[channel_axis]


def _parts(size: int) -> int:
    return min(2, size)
