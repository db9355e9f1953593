# SPDX-License-Identifier: Apache-2.0
"""Rollouts on disk: a record and a plan for each, and their files by digest.

`NAME.json` is the record, `NAME.plan` the plan that it follows, `files/SHA256` what is released. A file
that has not arrived completely is `files/SHA256.incoming`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import msgspec

from splitee.cli.words import size as size_in_words
from splitee.durable import StateDirectory, sync_folder, unwritable, write_atomically
from splitee.errors import MalformedMessage, ModelError, StateError
from splitee.protocol.release_orders import RolloutPlan
from splitee_server.release.rollout import Record, Rollout

INCOMING = ".incoming"
KEEP_INCOMING = 86_400.0  # seconds
MARGIN = 64 << 20  # bytes of the disk that are left free

log = logging.getLogger(__name__)


class RolloutStore:
    """A folder of rollouts. One process at a time works on it: see `open_store`.

    Attributes:
        reserved: digests of files that are kept, though no rollout has them yet.
    """

    def __init__(self, path: Path) -> None:
        """Raises StateError: it cannot be written."""
        self.path = path
        self._files = path / "files"
        self.reserved: set[str] = set()
        self._has_damaged = False
        try:
            self._files.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(path, error) from None

    def load(self) -> list[Rollout]:
        """All rollouts, in their order. Damaged ones are logged and left as they are, with all files."""
        found = []
        for path in self.path.glob("*.json"):
            try:
                record = msgspec.json.decode(path.read_bytes(), type=Record)
                data = path.with_suffix(".plan").read_bytes()
                if hashlib.sha256(data).hexdigest() != record.plan:
                    raise ModelError(f"{path.with_suffix('.plan')} is torn")
                found.append(Rollout(record, RolloutPlan.decode(data)))
            except (OSError, msgspec.MsgspecError, UnicodeDecodeError, MalformedMessage, ModelError) as error:
                log.warning("releases: %s cannot be read (%s): it is left out", path, error)
                self._has_damaged = True
        for plan in self.path.glob("*.plan"):  # of a process that was killed between the two writes
            if not plan.with_suffix(".json").exists():
                plan.unlink(missing_ok=True)
        return sorted(found, key=lambda rollout: rollout.record.order)

    def add(self, record: Record, plan: bytes) -> None:
        """A new rollout, durable when this returns. Raises StateError."""
        write_atomically(self.path / f"{record.rollout}.plan", plan)
        self.save(record)

    def save(self, record: Record) -> None:
        """Raises StateError: it cannot be written; the previous record is kept."""
        write_atomically(self.path / f"{record.rollout}.json", msgspec.json.encode(record))

    def remove(self, rollout: str) -> None:
        for suffix in ("json", "plan"):
            (self.path / f"{rollout}.{suffix}").unlink(missing_ok=True)

    def has(self, digest: str) -> bool:
        return (self._files / digest).exists()

    def read(self, digest: str, offset: int, count: int) -> bytes:
        """Bytes of a file. Raises StateError: it is gone."""
        try:
            with (self._files / digest).open("rb") as file:
                file.seek(offset)
                return file.read(count)
        except OSError as error:
            raise StateError(f"{self._files / digest}: {error.strerror}") from None

    def take_file(self, source: Path, digest: str) -> None:
        """Take a file of this machine, by a link if the disk allows it, or else a copy. Raises StateError."""
        path = self._files / digest
        if path.exists():
            return
        try:
            with suppress(OSError):
                os.link(source.resolve(), path)  # a link to a symbolic link would be another one
                sync_folder(self._files)
                return
            with source.open("rb") as file:
                write_atomically(path, lambda target: shutil.copyfileobj(file, target))
        except OSError as error:
            raise unwritable(path, error) from None

    # A file that comes in parts

    def received(self, digest: str) -> int:
        """Bytes of a file that have arrived so far."""
        with suppress(OSError):
            return self._incoming(digest).stat().st_size
        return 0

    def check_room(self, size: int) -> None:
        """Raises StateError: the disk has no room for so many more bytes."""
        try:
            free = shutil.disk_usage(self.path).free
        except OSError as error:
            raise unwritable(self.path, error) from None
        if free < size + MARGIN:
            raise StateError(
                f"the server has no room for {size_in_words(size)} in {self.path}: "
                f"{size_in_words(free)} are free, {size_in_words(MARGIN)} must stay free"
            )

    def append(self, digest: str, data: bytes) -> int:
        """Append the next bytes of a file; returns how many it has. Raises StateError."""
        path = self._incoming(digest)
        try:
            with path.open("ab") as file:
                file.write(data)
                return file.tell()
        except OSError as error:
            raise unwritable(path, error) from None

    def finish(self, digest: str) -> None:
        """Check and keep a file that has arrived completely; durable when this returns.

        Raises:
            ModelError: its digest is another one; it is deleted.
            StateError: it cannot be read or written.
        """
        path = self._incoming(digest)
        try:
            with path.open("rb+") as file:
                is_it = hashlib.file_digest(file, "sha256").hexdigest() == digest
                os.fsync(file.fileno())
            if is_it:
                path.replace(self._files / digest)
                sync_folder(self._files)
            else:
                path.unlink()
        except OSError as error:
            raise unwritable(path, error) from None
        if not is_it:
            raise ModelError(f"what was sent as {digest[:12]} is something else: release it again")

    def keep_only(self, digests: Collection[str]) -> None:
        """Delete all files but these. Incomplete ones go when nothing of them has arrived for a day.

        Nothing is deleted while a rollout is damaged: its record may be repaired, and then needs its files.
        """
        if self._has_damaged:
            return
        with suppress(OSError):  # removal may succeed the next time
            for path in self._files.iterdir():
                is_coming = path.suffix == INCOMING and time.time() - path.stat().st_mtime < KEEP_INCOMING
                if path.name not in digests and path.name not in self.reserved and not is_coming:
                    path.unlink(missing_ok=True)

    def _incoming(self, digest: str) -> Path:
        return self._files / f"{digest}{INCOMING}"


@contextmanager
def open_store(path: Path) -> Iterator[RolloutStore]:
    """The rollouts of a folder, for this process only. Raises StateError: another one uses it."""
    with closing(StateDirectory(path)):
        yield RolloutStore(path)
