# SPDX-License-Identifier: Apache-2.0
"""A bounded store of images that a device was uncertain of, for a person to label."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from splitee.cli.words import size
from splitee.durable import write_atomically
from splitee.errors import StateError
from splitee.inference.predictor import Prediction
from splitee.log_limits import FirstFew
from splitee.protocol.fields import Fraction, Text
from splitee.samples.fitting import Pixels
from splitee.samples.images import IMAGE_SUFFIXES, UnreadableImage, read_encoded

CELLS = 8  # a side, of the grid by which two images are compared
ALIKE = 0.98  # correlation of two images' cells from which on they are alike
COMPARED = 500  # the last images, with which a new one is compared
GUESS = ".{}.json"  # file beside an image: the model's prediction
OWN = re.compile(r"(\d{8}T\d{6}\.\d{3}-.+)|\.\d{8}T\d{6}\.\d{3}-.+\.json")  # a kept image, or its prediction

log = logging.getLogger(__name__)


class KeptGuess(msgspec.Struct, frozen=True):
    """The model's prediction for a kept image. `time`: seconds since the epoch."""

    label: Text
    probability: Fraction
    entropy: Fraction
    time: float


@dataclass(frozen=True)
class Bounds:
    """The bounds of a store.

    Attributes:
        count: number of images.
        size: bytes of all their files.
        every: seconds in which at most one image is kept, the most uncertain one.
        above: entropy above which an image is uncertain; None: the threshold in force.
    """

    count: int = 500
    size: int = 200 << 20
    every: float = 60.0
    above: float | None = None


@dataclass(frozen=True)
class _Candidate:
    name: str
    data: bytes
    cells: npt.NDArray[np.float32]
    guess: KeptGuess


class UnsureImages:
    """Keeps the most uncertain image of each `every` seconds, unless a kept one is alike; deletes the oldest.

    So a flickering lamp does not fill it, and an SD card gets few writes. Failed writes are logged, and
    predicting goes on.
    """

    def __init__(self, folder: Path, bounds: Bounds, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._bounds = bounds
        self._clock = clock
        self._candidate: _Candidate | None = None
        self._since = clock() - bounds.every
        self._kept: list[npt.NDArray[np.float32]] = []
        self._log_failed = FirstFew()

    def offer(
        self, name: str, source: Path | bytes, pixels: Pixels, prediction: Prediction, threshold: float
    ) -> None:
        """Takes an image that was classified.

        Args:
            source: its file, or encoded bytes.
            pixels: uint8 (C, H, W), as the model saw it.
            threshold: entropy up to which the exit's prediction is used.
        """
        above = threshold if self._bounds.above is None else self._bounds.above
        best = self._candidate
        if prediction.entropy <= above or (best is not None and prediction.entropy <= best.guess.entropy):
            return
        cells = _cells(pixels)
        if any(_correlation(cells, kept) >= ALIKE for kept in self._kept):
            return
        with contextlib.suppress(OSError, UnreadableImage):  # it is gone, or too large
            data = read_encoded(source)
            if len(data) > self._bounds.size:  # there would be no room for it without all the others
                self._note_failure(f"it has {size(len(data))}, --keep-size is {size(self._bounds.size)}")
                return
            guess = KeptGuess(prediction.label, prediction.probability, prediction.entropy, time.time())
            self._candidate = _Candidate(name, data, cells, guess)

    def tick(self) -> None:
        """Writes an image if one is due."""
        candidate = self._candidate
        if candidate is None or self._clock() - self._since < self._bounds.every:
            return
        self._candidate, self._since = None, self._clock()
        try:
            self._write(candidate)
        except (OSError, StateError) as error:
            self._note_failure(str(error))
            return
        self._kept = [*self._kept[1 - COMPARED :], candidate.cells]

    def _note_failure(self, reason: str) -> None:
        if self._log_failed.due():
            log.warning("an uncertain image was not kept: %s", reason)

    def _write(self, candidate: _Candidate) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        name = _file_name(candidate)
        self._make_room(len(candidate.data))
        guess = msgspec.json.encode(candidate.guess)
        write_atomically(self._folder / GUESS.format(name), guess)
        write_atomically(self._folder / name, candidate.data)

    def _make_room(self, needed: int) -> None:
        """Removes the oldest images until there is room for one more, and predictions whose image is gone.

        Only files of this store are removed: the owner may have other files in the folder.
        """
        images, guesses = [], []
        for path in self._folder.iterdir():
            own = OWN.fullmatch(path.name)
            if own is None:
                continue
            if own[1]:
                with contextlib.suppress(OSError):
                    status = path.lstat()
                    images.append((status.st_mtime_ns, path.name, status.st_size, path))
            else:
                guesses.append(path)
        images.sort()
        total = sum(length for _, _, length, _ in images)
        while images and (len(images) >= self._bounds.count or total + needed > self._bounds.size):
            _, _, length, path = images.pop(0)
            total -= length
            path.unlink(missing_ok=True)
        left = {GUESS.format(path.name) for _, _, _, path in images}
        for path in guesses:
            if path.name not in left:
                path.unlink(missing_ok=True)


def kept_guess(image: Path) -> KeptGuess | None:
    """The model's prediction for a kept image, if its file is beside the image."""
    try:
        with image.with_name(GUESS.format(image.name)).open("rb") as file:
            return msgspec.json.decode(file.read(1 << 16), type=KeptGuess)
    except (OSError, ValueError, RecursionError):
        return None


def _file_name(candidate: _Candidate) -> str:
    """The image's own name after the time, which makes names unique: 20260131T104501.250-NAME."""
    at = time.strftime("%Y%m%dT%H%M%S", time.gmtime(candidate.guess.time))
    own = re.sub(r"[^\w.-]", "_", candidate.name).encode()[-100:].decode(errors="ignore")
    if Path(own).suffix.lower() not in IMAGE_SUFFIXES:
        own += ".jpg"  # from a camera
    return f"{at}.{int(candidate.guess.time * 1000) % 1000:03}-{own}"


def _cells(pixels: Pixels) -> npt.NDArray[np.float32]:
    """Means of a grid, with mean 0 and length 1: brightness and contrast do not matter."""
    grey = pixels.mean(0, dtype=np.float32)
    rows = np.array_split(grey, min(CELLS, grey.shape[0]), 0)
    cells = np.array(
        [[cell.mean() for cell in np.array_split(row, min(CELLS, row.shape[1]), 1)] for row in rows]
    )
    cells -= cells.mean()
    length = float(np.linalg.norm(cells))
    return (cells / length if length else cells).ravel().astype(np.float32)


def _correlation(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    """In -1..1. Images without any contrast are alike."""
    if not one.any() and not other.any():
        return 1.0
    return float(one @ other) if one.shape == other.shape else 0.0
