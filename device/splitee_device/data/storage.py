# SPDX-License-Identifier: Apache-2.0
"""How a device keeps its images: decoded in memory if there is room, otherwise encoded."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from splitee.cli.words import size
from splitee.samples.fitting import Preparation
from splitee.samples.images import UnreadableImage
from splitee_device.data.base import Indices, Split
from splitee_device.data.encoded import Decoders, EncodedImages
from splitee_device.data.image_sets import ImageSet, LabelledImages
from splitee_device.machine import hardware

SHARE = 4  # decoded images may use 1/SHARE of the memory that a device may use
SHARE_OF_ALL = 8  # or 1/SHARE_OF_ALL of all memory, if the usable memory is unknown
TICK_EVERY = 64  # images
ENCODED = 400  # bytes of memory for an image that stays encoded: its name and location

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Storage:
    """Where images are kept, and what decodes them.

    Attributes:
        most: bytes that decoded images may use in memory; None: any number.
        workers: threads that decode encoded images ahead; 0: they are decoded on request.
        folder: for a temporary file; None: the system's own.
    """

    most: int | None = None
    workers: int = 1
    folder: Path | None = None

    def open(
        self,
        parts: list[tuple[Split, Indices]],
        preparation: Preparation,
        skipped: list[str],
        tick: Callable[[], None],
    ) -> list[LabelledImages]:
        """The images of each part, in the order of its split, without those that cannot be read.

        Args:
            parts: which images of which split.
            preparation: how each image is prepared.
            skipped: receives the names of the images that cannot be read.
            tick: is called now and then meanwhile.
        """
        count = sum(len(indices) for _, indices in parts)
        needed = count * int(np.prod(preparation.shape))
        if self.most is None or needed <= self.most:
            return [_decoded(split, np.sort(indices), preparation, skipped, tick) for split, indices in parts]
        log.info(
            "%d images would take %s decoded, more than the %s that images may take here: they stay encoded, "
            "and are decoded a batch ahead. Reading each once",
            count, size(needed), size(self.most),
        )  # fmt: skip
        decoders = Decoders(self.workers)
        return [
            self._encoded(split, np.sort(indices), preparation, skipped, decoders, tick)
            for split, indices in parts
        ]

    def _encoded(
        self,
        split: Split,
        indices: Indices,
        preparation: Preparation,
        skipped: list[str],
        decoders: Decoders,
        tick: Callable[[], None],
    ) -> LabelledImages:
        images = split.images if split.prepare is None else split.prepare(indices, self.folder)
        names = tuple(split.name(int(index)) for index in indices)
        found = EncodedImages(images, indices, split.labels[indices], names, preparation, decoders)
        unreadable = found.unreadable(tick)
        skipped += [found.name(int(number)) for number in unreadable]
        return found.without(unreadable) if len(unreadable) else found


IN_MEMORY = Storage()


def most_for_images(memory: int | None) -> int:
    """Bytes that decoded images may use: a quarter of what the device may use.

    `memory`: bytes that training may use, if its owner has set a limit.
    """
    return _share_of(hardware.least(memory, hardware.memory_for_training()))


def memory_of(count: int, decoded: int, usable: int | None) -> int:
    """Bytes of memory for `count` images of `decoded` bytes each, if a device may use `usable` bytes."""
    return count * decoded if count * decoded <= _share_of(usable) else count * ENCODED


def _share_of(usable: int | None) -> int:
    return usable // SHARE if usable is not None else psutil.virtual_memory().total // SHARE_OF_ALL


def _decoded(
    split: Split, indices: Indices, preparation: Preparation, skipped: list[str], tick: Callable[[], None]
) -> ImageSet:
    images = np.empty((len(indices), *preparation.shape), np.uint8)
    kept: list[int] = []
    for number, (index, decode) in enumerate(zip(indices, split.images(indices), strict=True)):
        if number % TICK_EVERY == 0:
            tick()
        try:
            images[len(kept)] = decode(preparation)
        except UnreadableImage as error:
            skipped.append(error.name)
            continue
        kept.append(int(index))
    names = tuple(map(split.name, kept))
    return ImageSet(images[: len(kept)], split.labels[kept], names)
