# SPDX-License-Identifier: Apache-2.0
"""The metrics of a run's evaluated rounds in history.jsonl, which is only appended to, and read once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from splitee.durable import unreadable, unwritable, write_atomically
from splitee.protocol.fleet import Metrics
from splitee.training.history import HISTORY, Course, course, read_history, read_lines

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """The last line of a round.

    Attributes:
        offset: bytes of the file before it.
        fleet: the fleet's metrics, without those of the devices, which may be thousands.
    """

    offset: int
    fleet: Metrics


class History:
    """A file with one line per evaluated round; after a crash a round may be in it twice."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / HISTORY
        self._entries: dict[int, Entry] | None = None  # by round; None: not read yet

    def repair(self) -> None:
        """Remove the incomplete line that a power cut may have left: lines after it could not be read.

        Raises StateError: the file cannot be read or written.
        """
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            data = b""
        except OSError as error:
            raise unreadable(self._path, error) from None
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            log.warning("state: the last line of %s is torn; it is dropped", self._path)
            write_atomically(self._path, whole)
        self._entries = None

    def add(self, metrics: Metrics) -> None:
        """Append a round's metrics. Raises StateError: they cannot be written."""
        entries = self._read()
        try:
            with self._path.open("ab") as file:
                offset = file.tell()
                file.write(metrics.encode() + b"\n")
        except OSError as error:
            raise unwritable(self._path, error) from None
        entries[metrics.round] = _entry(offset, metrics)

    def all(self) -> Iterator[Metrics]:
        """Every line of the file."""
        return read_history(self._directory)

    def evaluated(self, number: int) -> Metrics | None:
        """The metrics of round `number`; None: it was not evaluated."""
        entry = self._read().get(number)
        if entry is None:
            return None
        with self._path.open("rb") as file:
            file.seek(entry.offset)
            return msgspec.json.decode(file.readline(), type=Metrics)

    def of_fleet(self, committed: int) -> list[Metrics]:
        """Rounds 1..`committed` that were evaluated, in their order, each once and without devices."""
        entries = self._read()
        return [entries[number].fleet for number in sorted(entries) if number <= committed]

    def course(self, committed: int) -> Course:
        """How rounds 1..`committed` went; its `best` is without devices."""
        return course((entry.fleet for entry in self._read().values()), committed)

    def _read(self) -> dict[int, Entry]:
        if self._entries is None:
            self._entries, offset = {}, 0
            for metrics, length in read_lines(self._path):
                self._entries[metrics.round] = _entry(offset, metrics)
                offset += length
        return self._entries


def _entry(offset: int, metrics: Metrics) -> Entry:
    return Entry(offset, msgspec.structs.replace(metrics, devices={}))
