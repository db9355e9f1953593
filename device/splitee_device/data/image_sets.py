# SPDX-License-Identifier: Apache-2.0
"""A device's images as training requests them: by their numbers, a batch at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from splitee.samples.fitting import Pixels
from splitee_device.data.base import Labels

Numbers = npt.NDArray[np.integer]
Read = tuple[Numbers, Pixels]
"""The numbers (B,) of the images that were read, and their pixels: uint8 (B, C, H, W)."""


class LabelledImages(ABC):
    """Images numbered from 0, with `labels` int64 (N,)."""

    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, numbers: Numbers) -> Read:
        """The images of these `numbers` (B,).

        An image that can no longer be read is replaced by another of these. The numbers that are returned may
        therefore differ from the requested ones.
        """

    @abstractmethod
    def name(self, number: int) -> str:
        """The name by which a person can find an image, such as its path."""

    @abstractmethod
    def in_memory(self) -> ImageSet:
        """All images, decoded."""

    def take(self, numbers: Numbers) -> Pixels:
        """The pixels of these images: uint8 (B, C, H, W), as `read` returns them."""
        return self.read(numbers)[1]

    def batches(self, order: Iterable[Numbers]) -> Iterator[Read]:
        """The images of each batch of `order`, as `read` returns them."""
        return map(self.read, order)


@dataclass(frozen=True)
class ImageSet(LabelledImages):
    """Images in memory: `images` uint8 (N, C, H, W), `labels` int64 (N,), and all `names` or none."""

    images: Pixels
    labels: Labels
    names: tuple[str, ...] = ()

    def read(self, numbers: Numbers) -> Read:
        return numbers, self.images[numbers]

    def name(self, number: int) -> str:
        return self.names[number] if self.names else f"image {number}"

    def in_memory(self) -> ImageSet:
        return self


def joined(parts: Sequence[LabelledImages]) -> ImageSet:
    """All images of the parts in one set, decoded."""
    sets = [part.in_memory() for part in parts]
    images, labels = (np.concatenate([getattr(one, name) for one in sets]) for name in ("images", "labels"))
    names = tuple(one.name(number) for one in sets for number in range(len(one)))
    return ImageSet(images, labels, names)
