# SPDX-License-Identifier: Apache-2.0
"""Computed features, kept by the contents of the images' files."""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from splitee.durable import write_atomically
from splitee.errors import DataError, StateError
from splitee.inference.uncertainty import Array
from splitee.samples.images import load_image
from splitee_device.labelling.durable_moves import open_regular
from splitee_device.labelling.extractor import Extractor

BATCH = 16  # images
MOST = 20_000  # images whose features are kept
LARGEST = 64 << 20  # bytes of an image's file

log = logging.getLogger(__name__)

Row = tuple[Array, Array]
"""An image's features (D,) in float16, and logits (K,)."""


class KeptFeatures:
    """The features from one extractor, in memory and in a file; images that cannot be read have none."""

    def __init__(self, folder: Path, extractor: Extractor) -> None:
        self.extractor = extractor
        self._path = folder / f"features-{extractor.identity}.npz"
        self._rows: dict[bytes, Row] = {}
        self._new = 0
        self._load()

    def of(
        self, paths: Sequence[Path], stop: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[Path, Row | None]]:
        """Each image's row; None: it cannot be read. Rows that are not kept are computed, BATCH at a time."""
        for start in range(0, len(paths), BATCH):
            if stop():
                return
            yield from self._batch(paths[start : start + BATCH])

    def save(self) -> None:
        """Saves new features, and forgets the oldest; if they cannot be written, they are computed again."""
        if not self._new:
            return
        self._new = 0
        digests = list(self._rows)[-MOST:]
        self._rows = {digest: self._rows[digest] for digest in digests}
        features, logits = (np.stack([self._rows[digest][part] for digest in digests]) for part in (0, 1))
        keys = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, hashlib.sha256().digest_size)

        def write(file: BinaryIO) -> None:
            np.savez(file, keys=keys, features=features, logits=logits)

        try:
            write_atomically(self._path, write)
        except StateError as error:
            log.debug("%s", error)

    def _batch(self, paths: Sequence[Path]) -> Iterator[tuple[Path, Row | None]]:
        read = [(path, _read(path)) for path in paths]
        known = {path: hashlib.sha256(data).digest() for path, data in read if data is not None}
        pixels = {}
        for path, data in read:
            if data is not None and known[path] not in self._rows and known[path] not in pixels:
                try:
                    pixels[known[path]] = load_image(data, self.extractor.preparation, name=str(path))
                except DataError as error:
                    log.debug("%s", error)
        if pixels:
            features, logits = self.extractor(np.stack(list(pixels.values())))
            rows = zip(features.astype(np.float16), logits, strict=True)
            self._rows.update(zip(pixels, rows, strict=True))
            self._new += len(pixels)
        for path in paths:
            yield path, self._rows.get(known[path]) if path in known else None

    def _load(self) -> None:
        """Loads what an earlier process kept; a damaged file is ignored."""
        try:
            with np.load(self._path, allow_pickle=False) as arrays:
                keys, features, logits = (arrays[name] for name in ("keys", "features", "logits"))
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            log.debug("%s: %s", self._path, error)
            return
        if keys.dtype == np.uint8 and keys.ndim == 2 and features.dtype == np.float16 and features.ndim == 2:
            rows = zip(features, logits, strict=False)
            self._rows = {key.tobytes(): row for key, row in zip(keys, rows, strict=False)}


def _read(path: Path) -> bytes | None:
    """A file's bytes; None: it is missing, not a regular file, or too large for an image."""
    try:
        with open_regular(path) as file:
            data = file.read(LARGEST + 1)
    except OSError:
        return None
    return data if len(data) <= LARGEST else None
