# SPDX-License-Identifier: Apache-2.0
"""Batches of an image set on the network's device; on a GPU, all images in memory are copied there first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from splitee.protocol.run_spec import RunSpec
from splitee.samples.images import normalize
from splitee_device.data.image_sets import ImageSet, LabelledImages, Numbers


@dataclass(frozen=True)
class Batch:
    """Normalised `images` float32 (B, C, H, W), `labels` int64 (B,), and their `numbers` (B,) in the set."""

    numbers: Numbers
    images: Tensor
    labels: Tensor


Batches = Callable[[Iterable[Numbers]], Iterator[Batch]]
"""Maps the numbers (B,) of each batch to the batches, in that order."""


def batch(
    image_set: LabelledImages, numbers: Numbers, mean: Sequence[float], std: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """The images of `numbers`, normalised: float32 (B, C, H, W), and their labels: int64 (B,)."""
    numbers, pixels = image_set.read(numbers)
    return torch.from_numpy(normalize(pixels, mean, std)), torch.from_numpy(image_set.labels[numbers])


def batches_at(place: torch.device, image_set: LabelledImages, spec: RunSpec) -> Batches:
    """The batches of `image_set`, for a network at `place`."""
    if place.type != "cpu" and isinstance(image_set, ImageSet):
        return ResidentImages(place, image_set, spec)

    def batches(order: Iterable[Numbers]) -> Iterator[Batch]:
        for numbers, pixels in image_set.batches(order):
            images = torch.from_numpy(normalize(pixels, spec.mean, spec.std))
            labels = torch.from_numpy(image_set.labels[numbers])
            yield Batch(numbers, images.to(place), labels.to(place))

    return batches


class ResidentImages:
    """All images as uint8 at `place`, where they are also normalised."""

    def __init__(self, place: torch.device, image_set: ImageSet, spec: RunSpec) -> None:
        self._images = torch.from_numpy(image_set.images).to(place)
        self._labels = torch.from_numpy(image_set.labels).to(place)
        self._mean, self._std = (
            torch.tensor(values, device=place).reshape(-1, 1, 1) for values in (spec.mean, spec.std)
        )

    def __call__(self, order: Iterable[Numbers]) -> Iterator[Batch]:
        for numbers in order:
            chosen = torch.from_numpy(numbers).to(self._images.device)
            images = (self._images[chosen] / 255 - self._mean) / self._std
            yield Batch(numbers, images, self._labels[chosen])
