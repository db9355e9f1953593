# SPDX-License-Identifier: Apache-2.0
"""Augmentation of training images: random mirroring, shifts, crops and colour changes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from splitee.protocol.run_spec import RunSpec

SHIFT = 8  # an image is shifted by at most an eighth of its height and width
SCALE = (0.35, 1.0)  # share of an image's area that a crop for photographs shows
RATIO = (3 / 4, 4 / 3)  # of its width to its height
GREY = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
JITTER = 0.25  # largest relative change of brightness, contrast and saturation


def augment(images: Tensor, spec: RunSpec) -> Tensor:
    """Apply the run's `augmentation` to normalised images (B, C, H, W).

    `flip` exchanges left and right in half of them. `flip-crop` also shifts them; pixels that a shift brings
    in are zero. `photo` shows a part of each at full size, exchanges left and right in half of them, and
    changes brightness, contrast and saturation. It draws from torch's global generator, which trainers seed
    for every batch.

    torchvision's `v2` transforms process one image at a time, which takes half as long as a small device's
    training step; here a batch is processed at once.
    """
    how = spec.augmentation
    if how == "none":
        return images
    if how == "photo":
        return _jitter(_resized_crops(images), spec)
    flipped = torch.rand(len(images)) < 0.5
    images = torch.where(flipped[:, None, None, None].to(images.device), images.flip(3), images)
    return _shift(images) if how == "flip-crop" else images


def _shift(images: Tensor) -> Tensor:
    count, _, height, width = images.shape
    down, right = height // SHIFT, width // SHIFT
    padded = F.pad(images, (right, right, down, down))
    tops = torch.randint(2 * down + 1, (count,)).tolist()
    lefts = torch.randint(2 * right + 1, (count,)).tolist()
    return torch.stack(
        [
            one[:, top : top + height, left : left + width]
            for one, top, left in zip(padded, tops, lefts, strict=True)
        ]
    )


def _resized_crops(images: Tensor) -> Tensor:
    """A part of each image at full size, with left and right exchanged in half of them; bilinear.

    Parts are drawn as torchvision's RandomResizedCrop draws them (Szegedy et al., 2015), but one that is too
    wide or too high is cut to the image instead of being drawn again.
    """
    count, _, height, width = images.shape
    area = torch.empty(count).uniform_(*SCALE)
    ratio = torch.empty(count).uniform_(*map(math.log, RATIO)).exp() * height / width
    sizes = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()]).clamp(
        max=1
    )  # (2, B): of width, height
    middles = (1 - sizes) * (2 * torch.rand(2, count) - 1)  # the image is -1..1
    mirrored = torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    x, y = (
        middle[:, None] + size[:, None] * ((2 * torch.arange(pixels) + 1) / pixels - 1)
        for middle, size, pixels in zip(
            middles, (sizes[0] * mirrored, sizes[1]), (width, height), strict=True
        )
    )
    grid = torch.empty(count, height, width, 2)
    grid[..., 0], grid[..., 1] = x[:, None, :], y[:, :, None]
    return F.grid_sample(images, grid.to(images), padding_mode="border", align_corners=False)


def _jitter(images: Tensor, spec: RunSpec) -> Tensor:
    """Changes brightness, contrast and saturation, as torchvision's ColorJitter does in this order.

    Each of the three is linear in the colours, so together they are one matrix and one offset per image. At
    the end, values outside 0..1 are clipped.
    """
    count, channels = images.shape[:2]
    brightness, contrast, saturation = (
        torch.empty(count, 1, 1).uniform_(1 - JITTER, 1 + JITTER).to(images) for _ in range(3)
    )
    mean, std = (images.new_tensor(values).expand(channels)[:, None] for values in (spec.mean, spec.std))
    grey = images.new_tensor(GREY if channels == len(GREY) else [1 / channels] * channels)
    colours = images.flatten(2)  # (B, C, H W), normalised
    average = grey @ (std * colours.mean(dim=2, keepdim=True) + mean)  # (B, 1): how bright an image is
    mixed = saturation * torch.eye(channels).to(images) + (1 - saturation) * grey.expand(channels, channels)
    matrix = brightness * contrast * mixed  # (B, C, C), of colours in 0..1
    offset = (1 - contrast) * brightness * average[:, None] + matrix @ mean - mean
    changed = torch.baddbmm(offset / std, matrix * std[:, 0] / std, colours)
    torch.maximum(changed, -mean / std, out=changed)  # a third of the time that clamp takes
    torch.minimum(changed, (1 - mean) / std, out=changed)
    return changed.reshape(images.shape)
