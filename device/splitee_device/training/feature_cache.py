# SPDX-License-Identifier: Apache-2.0
"""Features on disk: the output of frozen stages for an image is computed once."""

from __future__ import annotations

import hashlib
import logging
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

NAME = "features.cache"
KEY = 16  # bytes of an image's key
HEAD = KEY + 4  # of a record: the key, and the checksum of what follows

Features = npt.NDArray[np.float32]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheRoom:
    """Where features may be kept, and how many bytes they may use; 0: none are kept."""

    folder: Path
    most: int


class FeatureCache:
    """A file of records of one size: key, checksum, features as float32, exactly as they were computed.

    It belongs to one network and one preparation of images, which `owner` identifies. Features of another
    owner are deleted, and those beyond the room. A torn record is computed again. A full file takes no
    further records.
    """

    def __init__(self, room: CacheRoom, owner: str, shape: tuple[int, ...]) -> None:
        self.owner = owner
        self._shape = shape
        self._size = HEAD + 4 * int(np.prod(shape))  # bytes of a record
        self._places: dict[bytes, int] = {}  # by key: the record's offset
        self._end = 0  # where the next record goes; 0: nothing is kept, or nothing more
        self._most = room.most
        try:
            self._file = os.open(room.folder / NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            self._open(hashlib.sha256(f"{owner} {shape}".encode()).digest())
        except OSError as error:
            log.warning("features are not kept on disk: %s: %s", room.folder / NAME, error.strerror)

    def get(self, key: bytes) -> Features | None:
        """The cached features of an image; None: there are none."""
        place = self._places.get(key)
        if place is None:
            return None
        record = os.pread(self._file, self._size, place)
        if record[:HEAD] != key + _checksum(record[HEAD:]):
            del self._places[key]
            return None
        return np.frombuffer(record, np.float32, offset=HEAD).reshape(self._shape)

    def put(self, key: bytes, features: Features) -> None:
        """Store the features of an image, if there is room."""
        data = np.ascontiguousarray(features, np.float32).tobytes()
        if not self._end or key in self._places or self._end + self._size > self._most:
            return
        try:
            os.pwrite(self._file, key + _checksum(data) + data, self._end)
        except OSError as error:
            log.warning("no more features are kept on disk: %s", error.strerror)
            self._end = 0
            return
        self._places[key] = self._end
        self._end += self._size

    def _open(self, owner: bytes) -> None:
        if os.pread(self._file, len(owner), 0) != owner:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, owner, 0)
        end = min(os.fstat(self._file).st_size, self._most)
        place = len(owner)
        while place + self._size <= end:
            self._places[os.pread(self._file, KEY, place)] = place
            place += self._size
        os.ftruncate(self._file, place)
        self._end = place

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)


def discard(folder: Path) -> None:
    """Delete the features that are kept in `folder`, if there are any."""
    try:
        (folder / NAME).unlink(missing_ok=True)
    except OSError as error:
        log.warning("features of before stay on disk: %s: %s", folder / NAME, error.strerror)


def key_of(pixels: npt.NDArray[np.uint8]) -> bytes:
    """The key of an image, from its pixels before they are normalised."""
    return hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=KEY).digest()


def _checksum(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "little")
