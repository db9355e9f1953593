# SPDX-License-Identifier: Apache-2.0
"""The data sets in this package, as uint8 arrays in .npz files."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from splitee.errors import DataError
from splitee.samples.fitting import Pixels, from_array
from splitee_device.data.base import DeferredImage, Indices, Source, Split

FOLDER = Path(__file__).parent / "builtin"


def open_builtin(name: str) -> Source:
    """The data set `name`, decoded, with its test split. Raises DataError."""
    known = sorted(path.stem for path in FOLDER.glob("*.npz"))
    if name not in known:
        raise DataError(f"unknown data set builtin:{name}; there is builtin:{', builtin:'.join(known)}")
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as arrays:
        train, test = (
            _in_memory(arrays[f"{part}_images"], arrays[f"{part}_labels"], f"{name} {part} image {{}}")
            for part in ("train", "test")
        )
        return Source(tuple(map(str, arrays["class_names"])), train, test)


def _in_memory(pixels: Pixels, labels: npt.NDArray[np.uint8], name: str) -> Split:
    def images(indices: Indices) -> Iterator[DeferredImage]:
        return (partial(from_array, pixels[index]) for index in indices)

    return Split(labels.astype(np.int64), images, name.format)
