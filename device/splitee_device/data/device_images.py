# SPDX-License-Identifier: Apache-2.0
"""A device's data during a run: images added to or removed from its folder are considered between rounds."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from splitee.errors import DataError
from splitee_device.data.division import Division
from splitee_device.data.folder import fingerprint
from splitee_device.data.images import DeviceData

log = logging.getLogger(__name__)


class DeviceImages:
    """The images as they were when they were last opened."""

    def __init__(
        self,
        open_with: Callable[[Division | None], DeviceData],
        division: Division | None = None,
        folders: tuple[Path, ...] = (),
    ) -> None:
        """Opens the data.

        Args:
            open_with: opens the data, given the previous use of its images.
            division: their use when the device last ran.
            folders: those that hold the images; if empty, nothing changes.

        Raises:
            DataError: as `open_with` does.
        """
        self._open_with = open_with
        self._folders = folders
        self._last_fingerprints = self._fingerprints()
        self.data = open_with(division)

    def refresh(self) -> bool:
        """Open the data again if the folders have changed. Returns whether `data` has changed.

        Data that cannot be read, or has other classes than the run, is not adopted. If anything else ends the
        reading, such as a phase that the server ends meanwhile, the next call reads the data again.
        """
        now = self._last_fingerprints
        try:
            now = self._fingerprints()
            if now == self._last_fingerprints:
                return False
            found = self._open_with(self.data.division)
        except DataError as error:
            self._last_fingerprints = now
            log.warning("the images have changed, but what was read before stays in use: %s", error)
            return False
        self._last_fingerprints = now
        if found.class_names != self.data.class_names:
            log.warning(
                "the images' classes have changed, which this run cannot follow: what was read before stays "
                "in use; a new run will use the classes %s",
                ", ".join(found.class_names),
            )
            return False
        self._report(found)
        self.data = found
        return True

    def _report(self, found: DeviceData) -> None:
        before, after = (_all(data.division) for data in (self.data, found))
        log.info(
            "images: %d have come, %d have gone; from the next round on %d to train on, %d held out",
            len(after - before), len(before - after), len(found.train), len(found.held_out),
        )  # fmt: skip

    def _fingerprints(self) -> list[bytes]:
        return [fingerprint(folder) for folder in self._folders]


def _all(division: Division | None) -> frozenset[str]:
    return division.present if division is not None else frozenset()
