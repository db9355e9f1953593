# SPDX-License-Identifier: Apache-2.0
"""Splits motion JPEG, images one after the other with nothing in between, into its images."""

from __future__ import annotations

import re

LARGEST = 8 << 20  # bytes of an image; those of a camera with 12 million pixels have about 5 MB
START = b"\xff\xd8\xff"
END, SCAN = 0xD9, 0xDA  # markers, as ITU-T T.81, table B.1, names them: EOI and SOS
# In a scan 0xff is data before a zero, and a restart before 0xd0 to 0xd7; it may be repeated (B.1.1).
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)


class Splitter:
    """Takes a stream in pieces, and returns its images.

    An image is followed marker by marker, so that the thumbnail in its EXIF data does not end it. Data that
    does not follow the standard, or exceeds LARGEST, is skipped up to the next beginning of an image.

    Attributes:
        broken: number of skips: of a broken image, or of LARGEST bytes without one.
    """

    def __init__(self, largest: int = LARGEST) -> None:
        self._largest = largest
        self._held = bytearray()
        self._place = 0  # end of the part of the current image that has been followed; 0: no image has begun
        self._is_scan = False
        self._skipped = 0  # bytes between images since the last one
        self.broken = 0

    @property
    def held(self) -> int:
        """Bytes that wait for the rest of their image."""
        return len(self._held)

    def feed(self, piece: bytes) -> list[bytes]:
        """The images that `piece` completes."""
        self._held += piece
        images = []
        while self._place or self._begin():
            end = self._follow()
            if end:
                images.append(bytes(self._held[:end]))
                del self._held[:end]
                self._place, self._is_scan, self._skipped = 0, False, 0
            elif end is None and len(self._held) <= self._largest:
                break
            else:
                self._pass_over()
        return images

    def _begin(self) -> bool:
        """Drops bytes before an image; returns whether one has begun."""
        found = self._held.find(START)
        skipped = found if found >= 0 else max(len(self._held) - len(START) + 1, 0)
        del self._held[:skipped]
        self._skipped += skipped
        if self._skipped > self._largest:
            self.broken, self._skipped = self.broken + 1, 0
        self._place = 2 if found >= 0 else 0
        return found >= 0

    def _pass_over(self) -> None:
        self.broken += 1
        del self._held[:2]
        self._place, self._is_scan = 0, False

    def _follow(self) -> int | None:
        """The end of the image; None: it has not come yet; 0: the image does not follow the standard."""
        held = self._held
        while True:
            if self._is_scan:
                found = _MARKER.search(held, self._place)
                if found is None:
                    self._place = max(self._place, len(held) - 1)
                    return None
                self._place, self._is_scan = found.start(), False
            if len(held) < self._place + 2:
                return None
            if held[self._place] != 0xFF:
                return 0
            marker = held[self._place + 1]
            if marker == 0xFF:  # a marker may be preceded by fill bytes
                self._place += 1
                continue
            if marker == END:
                return self._place + 2
            if len(held) < self._place + 4:
                return None
            length = int.from_bytes(held[self._place + 2 : self._place + 4], "big")
            if length < 2 or marker < 0xC0 or 0xD0 <= marker <= 0xD8:
                return 0
            self._place += 2 + length
            self._is_scan = marker == SCAN
