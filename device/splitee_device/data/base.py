"""What a source of images gives: labels at once, and each image when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from splitee.samples.fitting import T

Labels = npt.NDArray[np.int64]
Indices = npt.NDArray[np.intp]

MAX_CLASSES = 1 << 16


class DeferredImage(Protocol):
    """One image, opened when it is called."""

    def __call__(self, make: Callable[[Image.Image], T], /) -> T:
        """What `make` makes of the image: a `Preparation` its pixels. Raises UnreadableImage."""


@dataclass(frozen=True)
class Split:
    """Labelled images on demand: `images(indices)` gives them one by one, in the order of `indices`.

    `indices` ascend, so that a file is read once and in its order.
    """

    labels: Labels
    images: Callable[[Indices], Iterator[DeferredImage]]


@dataclass(frozen=True)
class Source:
    """A data set: `test` is None where it has no test split of its own."""

    class_names: tuple[str, ...]
    train: Split
    test: Split | None


def numbered(labels: Labels) -> tuple[str, ...]:
    """Names for classes that have none; a label beyond all bounds is left for the check of the labels."""
    return tuple(map(str, range(min(int(labels.max(initial=0)) + 1, MAX_CLASSES))))
