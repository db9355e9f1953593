# SPDX-License-Identifier: Apache-2.0
"""Images that stay encoded, in files or in a temporary file, and are decoded a batch ahead of training."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import numpy.typing as npt

from splitee.errors import DataError
from splitee.samples.fitting import Pixels, Preparation
from splitee.samples.images import UnreadableImage
from splitee_device.data.base import Images, Indices, Labels
from splitee_device.data.image_sets import ImageSet, LabelledImages, Numbers, Read

AHEAD = 1  # batches that are decoded during the training of one
CHECKED_AT_ONCE = 64  # images
THREADS = "decode"  # prefix of the threads' names

log = logging.getLogger(__name__)


class Decoders:
    """Threads that decode images, for all sets of a device."""

    def __init__(self, count: int) -> None:
        """`count`: 0 for none."""
        self.count = count
        self._threads = ThreadPoolExecutor(count, THREADS) if count else None

    def start(self, work: Callable[[slice], list[int]]) -> list[Future[list[int]]]:
        """Divide the work on a batch among the threads: each does every `count`th place."""
        if self._threads is None:
            return [_done(work(slice(None)))]
        return [self._threads.submit(work, slice(first, None, self.count)) for first in range(self.count)]


def _done(result: list[int]) -> Future[list[int]]:
    future: Future[list[int]] = Future()
    future.set_result(result)
    return future


@dataclass(frozen=True)
class _Decoding:
    """A batch being decoded into `pixels`; each part returns the places that could not be decoded."""

    numbers: Numbers
    pixels: Pixels
    parts: list[Future[list[int]]]

    def failed(self) -> list[int]:
        """Waits until all is decoded; returns the places that could not be decoded."""
        return [place for part in self.parts for place in part.result()]

    def cancel(self) -> None:
        for part in self.parts:
            part.cancel()


class EncodedImages(LabelledImages):
    """Images that are decoded on each request; threads decode the next batch during the current one.

    Pillow lets other threads run while it decodes. The result does not depend on which thread decodes an
    image, or when. An image that can no longer be read is replaced by the one before it in its batch, or by
    the next readable one.
    """

    def __init__(
        self,
        images: Images,
        places: Indices,
        labels: Labels,
        names: tuple[str, ...],
        preparation: Preparation,
        decoders: Decoders,
    ) -> None:
        """`images`: of a split, for places in any order; image i of the set is at `places[i]`."""
        self.labels = labels
        self._images = images
        self._places = places
        self._names = names
        self._preparation = preparation
        self._decoders = decoders
        self._lost: set[int] = set()

    def read(self, numbers: Numbers) -> Read:
        return self._wait_for(self._start(numbers))

    def name(self, number: int) -> str:
        return self._names[number]

    def in_memory(self) -> ImageSet:
        numbers, pixels = self.read(np.arange(len(self)))
        return ImageSet(pixels, self.labels[numbers], self._names)

    def batches(self, order: Iterable[Numbers]) -> Iterator[Read]:
        ahead: deque[_Decoding] = deque()
        waiting = iter(order)
        most = AHEAD if self._decoders.count else 0
        try:
            ahead.extend(map(self._start, islice(waiting, most)))
            for numbers in waiting:
                ahead.append(self._start(numbers))
                yield self._wait_for(ahead.popleft())
            while ahead:
                yield self._wait_for(ahead.popleft())
        finally:
            for decoding in ahead:
                decoding.cancel()

    def unreadable(self, tick: Callable[[], None]) -> Numbers:
        """The numbers of the images that cannot be read, found by decoding each of them once.

        Args:
            tick: is called now and then meanwhile.
        """
        found: list[int] = []
        for first in range(0, len(self), CHECKED_AT_ONCE):
            decoding = self._start(np.arange(first, min(first + CHECKED_AT_ONCE, len(self))))
            found += [first + place for place in decoding.failed()]
            tick()
        return np.array(sorted(found), dtype=np.intp)

    def without(self, numbers: Numbers) -> EncodedImages:
        """The set without the images of these numbers."""
        kept = np.setdiff1d(np.arange(len(self)), numbers)
        names = tuple(self._names[number] for number in kept)
        return EncodedImages(
            self._images, self._places[kept], self.labels[kept], names, self._preparation, self._decoders
        )

    def _start(self, numbers: Numbers) -> _Decoding:
        pixels = np.empty((len(numbers), *self._preparation.shape), np.uint8)
        return _Decoding(numbers, pixels, self._decoders.start(partial(self._decode, numbers, pixels)))

    def _wait_for(self, decoding: _Decoding) -> Read:
        return self._filled(decoding.numbers, decoding.pixels, decoding.failed())

    def _decode(self, numbers: Numbers, pixels: Pixels, part: slice) -> list[int]:
        """Decode a part of a batch into `pixels`; returns the places in the batch that cannot be read."""
        places = np.arange(len(numbers))[part]
        failed = []
        for place, decode in zip(places, self._images(self._places[numbers[part]]), strict=True):
            try:
                pixels[place] = decode(self._preparation)
            except UnreadableImage:
                failed.append(int(place))
        return failed

    def _filled(self, numbers: Numbers, pixels: Pixels, failed: list[int]) -> Read:
        """The batch, in which other images of it replace those that failed."""
        if not failed:
            return numbers, pixels
        self._note_lost(numbers[failed])
        if len(failed) == len(numbers):
            return self._instead_of(numbers)
        sources = np.arange(len(numbers))
        good = np.setdiff1d(sources, failed)
        before = np.searchsorted(good, failed) - 1
        sources[failed] = good[np.maximum(before, 0)]
        return numbers[sources], pixels[sources]

    def _instead_of(self, numbers: Numbers) -> Read:
        """Replaces a batch without any readable image by copies of the next readable image of the set."""
        following = (int(numbers[0]) + 1 + np.arange(CHECKED_AT_ONCE)) % len(self)
        decoding = self._start(following)
        good = np.setdiff1d(np.arange(CHECKED_AT_ONCE), decoding.failed())[:1]
        if not len(good):
            raise DataError(
                f"{self.name(int(numbers[0]))}: neither it nor the {CHECKED_AT_ONCE} images after it can be "
                "read any more; is the disk that they are on still there?"
            )
        return following[good.repeat(len(numbers))], decoding.pixels[good.repeat(len(numbers))]

    def _note_lost(self, numbers: npt.NDArray[np.integer]) -> None:
        """Log the first lost image, the second, the fourth and so on: a lost disk must not fill the log."""
        for number in map(int, numbers):
            if number in self._lost:
                continue
            self._lost.add(number)
            if len(self._lost).bit_count() == 1:
                log.warning(
                    "%s cannot be read any more, which makes %d of %d images: another of its batch replaces "
                    "it",
                    self.name(number), len(self._lost), len(self),
                )  # fmt: skip
