# SPDX-License-Identifier: Apache-2.0
"""What a source of images provides: labels at once, and each image on request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from splitee.errors import DataError
from splitee.samples.fitting import T

Labels = npt.NDArray[np.int64]
Indices = npt.NDArray[np.intp]

MAX_CLASSES = 1 << 16


class DeferredImage(Protocol):
    """One image, opened when it is called."""

    def __call__(self, make: Callable[[Image.Image], T], /) -> T:
        """The result of `make` for the image, such as a `Preparation`'s pixels. Raises UnreadableImage."""


Images = Callable[[Indices], Iterator[DeferredImage]]
"""Yields the images at these places of a split, in their order."""


@dataclass(frozen=True)
class Split:
    """Labelled images on demand.

    Attributes:
        images: for ascending places, so that a file is read once and in order.
        name: of the image at a place, by which a person can find it.
        prepare: takes the places that will be requested, and a folder for a temporary file; returns `images`
            for places in any order, fast and thread-safe. None: `images` itself is so.
        keys: of the image at a place; each of them identifies it, and the first is stored. None: images are
            never added or removed.
    """

    labels: Labels
    images: Images
    name: Callable[[int], str]
    prepare: Callable[[Indices, Path | None], Images] | None = None
    keys: Callable[[int], tuple[str, ...]] | None = None


@dataclass(frozen=True)
class Source:
    """A data set. `test` is None if it has no test split of its own.

    Attributes:
        empty: classes that are named but have no images.
        ignored: what was found but is not an image of the set, and why, each in a few words.
    """

    class_names: tuple[str, ...]
    train: Split
    test: Split | None
    empty: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


def expanded(name: str) -> Path:
    """The path that `name` stands for, which may begin with ~ or ~USER. Raises DataError."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise DataError(
            f"no images at {name!r}: it begins with the home directory of no known user"
        ) from None


def numbered(labels: Labels) -> tuple[str, ...]:
    """Names for unnamed classes; a label beyond all bounds is left to the check of labels."""
    return tuple(map(str, range(min(int(labels.max(initial=0)) + 1, MAX_CLASSES))))
