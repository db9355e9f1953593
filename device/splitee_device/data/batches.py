"""Batches of an image set where the network is: on a GPU, the images lie there from the start."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from splitee.protocol.run_spec import RunSpec
from splitee.samples.images import normalize
from splitee_device.data.images import ImageSet

Batches = Callable[[npt.NDArray[np.integer]], tuple[Tensor, Tensor]]
"""Indices (B,) to normalised images float32 (B, C, H, W) and labels int64 (B,)."""


def batch(
    image_set: ImageSet, indices: npt.NDArray[np.integer], mean: Sequence[float], std: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """The images at `indices`, normalised: float32 (B, C, H, W), and their labels: int64 (B,)."""
    images = normalize(image_set.take(indices), mean, std)
    return torch.from_numpy(images), torch.from_numpy(image_set.labels[indices])


def batches_at(place: torch.device, image_set: ImageSet, spec: RunSpec) -> Batches:
    """Of `image_set`, for a network at `place`."""
    if place.type == "cpu":
        return lambda indices: batch(image_set, indices, spec.mean, spec.std)
    return ResidentImages(place, image_set, spec)


class ResidentImages:
    """All images as uint8 at `place`, where they are also normalised."""

    def __init__(self, place: torch.device, image_set: ImageSet, spec: RunSpec) -> None:
        self._images = torch.from_numpy(image_set.images).to(place)
        self._labels = torch.from_numpy(image_set.labels).to(place)
        self._mean, self._std = (
            torch.tensor(values, device=place).reshape(-1, 1, 1) for values in (spec.mean, spec.std)
        )

    def __call__(self, indices: npt.NDArray[np.integer]) -> tuple[Tensor, Tensor]:
        chosen = torch.from_numpy(indices).to(self._images.device)
        return (self._images[chosen] / 255 - self._mean) / self._std, self._labels[chosen]
