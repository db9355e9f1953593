# SPDX-License-Identifier: Apache-2.0
"""What a source of images gives: labels at once, and each image when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
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


Images = Callable[[Indices], Iterator[DeferredImage]]
"""The images at these places of a split, one by one, in the order of the places."""


@dataclass(frozen=True)
class Split:
    """Labelled images on demand.

    Attributes:
        images: gives them for places that ascend, so that a file is read once and in its order.
        name: of the image at a place, by which people find it.
        prepare: of the places that will be asked for, and a folder for a temporary file: gives `images` for
            places in any order, cheaply and from several threads. None: `images` itself is so.
        keys: of the image at a place, by each of which it is known again, the first of which is kept. None: no
            image is added or taken away.
    """

    labels: Labels
    images: Images
    name: Callable[[int], str]
    prepare: Callable[[Indices, Path | None], Images] | None = None
    keys: Callable[[int], tuple[str, ...]] | None = None


@dataclass(frozen=True)
class Source:
    """A data set: `test` is None where it has no test split of its own.

    Attributes:
        empty: classes that are named and have no images.
        ignored: what was found and is no image of the set, and why, each in a few words.
    """

    class_names: tuple[str, ...]
    train: Split
    test: Split | None
    empty: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


def numbered(labels: Labels) -> tuple[str, ...]:
    """Names for classes that have none; a label beyond all bounds is left for the check of the labels."""
    return tuple(map(str, range(min(int(labels.max(initial=0)) + 1, MAX_CLASSES))))
