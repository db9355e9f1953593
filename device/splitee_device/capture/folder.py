# SPDX-License-Identifier: Apache-2.0
"""A folder that is watched for images."""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from splitee.clock import Clock
from splitee.errors import DataError
from splitee.log_limits import FirstFew
from splitee.samples.images import IMAGE_SUFFIXES
from splitee_device.capture.backlog import NewImage

if TYPE_CHECKING:
    from watchfiles._rust_notify import RustNotify

SETTLED = 0.2  # seconds without a change after which a file is considered complete
GATHER, STEP = 0.1, 0.05  # seconds: changes are reported together, after a step without any or at last
CHECK_EVERY = 1.0  # seconds between checks of the folder's existence, and of its files if there are no events
# Seconds between two scans of all files, because events may be lost in a flood. Also the seconds during which
# a file that was taken is checked again for growth if no events report it.
SCAN_EVERY = 60.0
DELETED = 3  # of watchfiles.Change

log = logging.getLogger(__name__)

Version = tuple[int, int]  # of a file: its size in bytes, and the time of its last modification


class Folder:
    """The images that come into a folder.

    A file is taken when it has not changed for SETTLED, because it may still be written until then. If it
    changes later, as a copy does that a slow network interrupted, it is taken again. A file that has an
    image's name but is not a regular file is never opened. If the folder disappears, as on a removed drive,
    it is waited for; the images that it had before are not new.

    The system reports changes (inotify), and no file is examined before. If it does not, as on network
    drives, all names are scanned at a fixed interval.

    Attributes:
        skipped: files that are there and are not regular files.
    """

    def __init__(
        self,
        path: Path,
        *,
        existing: bool = False,
        poll: float | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        """Args:
            existing: whether images that are there at the start are new, too.
            poll: seconds between two scans of all names; None: the system reports changes.

        Raises DataError: there is no such folder.
        """
        if not path.is_dir():
            raise DataError(f"--watch {path}: there is no such folder")
        self._path = path
        self._poll = poll
        self._clock = clock
        self._events: RustNotify | None = None
        self._identity: tuple[int, int] | None = None  # of the folder whose events are received
        self._is_missing = False
        self._touched: set[str] = set()  # names since the last check
        self._settling: dict[str, tuple[Version, float]] = {}  # version, and since when it has been so
        self._recently_taken: dict[str, float] = {}  # when the latest files were taken
        self._scan_due = 0.0  # when all names are scanned again
        self._ready: deque[str] = deque()  # to be yielded
        self.skipped: set[Path] = set()
        self._log_skips = FirstFew()
        self._taken = {} if existing else self._at_start()

    def images(self, stop: threading.Event) -> Iterator[NewImage]:
        """Yields images whose files are complete, as they come, until `stop` is set."""
        try:
            while not stop.is_set():
                self._ready.extend(self.new())
                while self._ready and not stop.is_set():
                    name = self._ready.popleft()
                    yield NewImage(name, self._path / name)
                self._wait(stop)
        finally:
            self._forget_events()

    def new(self) -> list[str]:
        """Names of the images whose files are newly complete; none while the folder is missing."""
        self._check_identity()
        if self._clock() >= self._scan_due:
            names = self._names()
            if names is None:
                return []
            self._scan_all(names)
        candidates = self._touched | self._settling.keys()
        self._touched = set()
        ready = sorted(self._complete(candidates))
        self._recently_taken.update(dict.fromkeys(ready, self._clock()))
        return ready

    def _at_start(self) -> dict[str, Version | None]:
        """The images that are not new. Without events, their versions are not read."""
        names = self._names() or set()
        if self._poll is not None:  # on a network drive each would take a round trip
            return dict.fromkeys(names)
        return {name: version for name in names if (version := self._version(name)) is not None}

    def _scan_all(self, names: set[str]) -> None:
        """Forgets removed files, whose names may come again; checks recent files again, which may have grown.

        At the first scan with events it checks all known files: they may have changed before, or events were
        lost.
        """
        is_first = self._events is not None and not self._scan_due
        self._taken = {name: version for name, version in self._taken.items() if name in names}
        self._settling = {name: seen for name, seen in self._settling.items() if name in names}
        self.skipped = {path for path in self.skipped if path.name in names}
        known = self._taken.keys() if is_first else self._recently_taken.keys()
        self._touched |= (names - self._taken.keys()) | (known & names)
        now = self._clock()
        self._recently_taken = {
            name: taken for name, taken in self._recently_taken.items() if now - taken < SCAN_EVERY
        }
        self._scan_due = now + (SCAN_EVERY if self._events is not None else 0)

    def _complete(self, names: Iterable[str]) -> Iterator[str]:
        """Yields the `names` that have settled in a version that was not taken yet, and marks it as taken."""
        now = self._clock()
        for name in names:
            version = self._version(name)
            before, since = self._settling.pop(name, (None, now))
            if version is None or version == self._taken.get(name):
                continue
            if version != before:
                self._settling[name] = version, now
            elif now - since < SETTLED:
                self._settling[name] = version, since
            else:
                self._taken[name] = version
                yield name

    def _version(self, name: str) -> Version | None:
        """The version of a regular file; None: it is not one, or empty, or gone."""
        path = self._path / name
        try:
            status = path.stat()
        except OSError:
            return None
        if stat.S_ISREG(status.st_mode):
            return (status.st_size, status.st_mtime_ns) if status.st_size else None
        if path not in self.skipped:
            self.skipped.add(path)
            if self._log_skips.due():
                log.warning("skipped: %s: expected an image, got no regular file", name)
        return None

    def _names(self) -> set[str] | None:
        """Names of the images in the folder; None: it cannot be read."""
        try:
            with os.scandir(self._path) as entries:
                names = {entry.name for entry in entries if _is_image(entry.name)}
        except OSError as error:
            if not self._is_missing:
                log.warning("--watch %s: %s; waiting for it to come back", self._path, error.strerror)
            self._is_missing = True
            self._forget_events()
            return None
        if self._is_missing:
            log.info("--watch %s is back", self._path)
        self._is_missing = False
        return names

    def _check_identity(self) -> None:
        """Events belong to a folder, not to a path: another folder may be there now, or none."""
        try:
            status = self._path.stat()
            identity = status.st_dev, status.st_ino
        except OSError:
            identity = None
        if identity != self._identity:
            self._forget_events()
            self._identity = identity
            if identity is not None and self._poll is None:
                self._events = self._listen()

    def _listen(self) -> RustNotify | None:
        """A source of change events; None: the system has none."""
        from watchfiles._rust_notify import RustNotify  # documented for use without watchfiles' own loop

        try:
            return RustNotify([str(self._path)], False, False, 0, False, False)
        except (OSError, RuntimeError) as error:
            if self._path.is_dir():
                log.warning(
                    "--watch %s: the system reports no changes (%s); scanning every %.0f s",
                    self._path,
                    str(error).partition("\n")[0],
                    CHECK_EVERY,
                )
            return None

    def _forget_events(self) -> None:
        if self._events is not None:
            self._events.close()
        self._events, self._identity, self._scan_due = None, None, 0.0

    def _wait(self, stop: threading.Event) -> None:
        """Waits until something may be new."""
        pause = SETTLED if self._settling else (self._poll or CHECK_EVERY)
        if self._events is None:
            stop.wait(pause)
            return
        try:
            changes = self._events.watch(int(1000 * GATHER), int(1000 * STEP), int(1000 * pause), stop)
        except RuntimeError as error:  # for a name that is not UTF-8, and for all later ones
            log.debug("--watch %s: events were lost (%s)", self._path, error)
            self._forget_events()  # all files are scanned instead
            stop.wait(CHECK_EVERY)
            return
        if not isinstance(changes, str):  # there were some
            self._note(changes)

    def _note(self, changes: Iterable[tuple[int, str]]) -> None:
        """Records the changes that the system has reported."""
        for change, path in changes:
            name = Path(path).name
            if _is_image(name):
                self._touched.add(name)
                if change == DELETED:
                    self._taken.pop(name, None)
        self.skipped = {path for path in self.skipped if path.name not in self._touched}


def _is_image(name: str) -> bool:
    """Whether a name is an image's. It makes no `Path`, because there may be thousands of names."""
    return f".{name.rpartition('.')[2].lower()}" in IMAGE_SUFFIXES and not name.startswith(".")
