# SPDX-License-Identifier: Apache-2.0
"""The labelling steps, each recorded before it is carried out, so that a kill loses nothing."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
from pathlib import Path

import msgspec

from splitee.durable import sync_folder, unwritable
from splitee.errors import StateError
from splitee.protocol.fields import Fraction, Milliseconds, Positive
from splitee_device.labelling.class_names import WORKSPACE

FILE, LOCK = "journal.jsonl", ".lock"

log = logging.getLogger(__name__)


class Moved(msgspec.Struct, frozen=True, omit_defaults=True):
    """One image of a step. Paths are relative to the labelled images' folder, or absolute outside of it.

    Attributes:
        image: its identifier on the page.
        source: where it was.
        target: where it goes.
        guess: of the model in service at that time; "": there was none.
        probability: of the guess.
        entropy: the model's uncertainty.
    """

    image: str
    source: str
    target: str
    guess: str = ""
    probability: Fraction = 0.0
    entropy: Fraction = 0.0


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """Images that were labelled together, or the undoing of such a step.

    Attributes:
        time: milliseconds since the epoch.
        label: the class; None: none of these.
        undoes: number of the step that is undone.
    """

    number: Positive
    time: Milliseconds
    images: tuple[Moved, ...]
    label: str | None = None
    undoes: int | None = None


class LabelledElsewhere(StateError):
    """Another process is labelling the same images."""


class Journal:
    """The steps in `FOLDER/.labelling/journal.jsonl`, one a line; only one process uses it at a time.

    A torn line is the trace of a kill before its step was begun; it is dropped. A later line of the same
    number replaces the earlier one, and a line without images removes the step.

    Attributes:
        steps: those in force, by their numbers in ascending order.
        last: the newest line; only this one may not have been carried out completely.
    """

    def __init__(self, folder: Path) -> None:
        """Raises StateError: it cannot be written, or another process uses it."""
        self._path = folder / WORKSPACE / FILE
        self.steps: dict[int, Step] = {}
        self.last: Step | None = None
        self._highest = 0
        try:
            self._path.parent.mkdir(exist_ok=True)
            self._lock = os.open(self._path.parent / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise unwritable(self._path, error) from None
        try:
            self._open()
        except BaseException:
            os.close(self._lock)
            raise

    def _open(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise LabelledElsewhere(
                f"{self._path.parent.parent} is being labelled by another process; stop it first"
            ) from None
        try:
            self._file = self._path.open("a+b", buffering=0)
            self._size = self._read()
            if self._size != os.fstat(self._file.fileno()).st_size:
                self._file.truncate(self._size)
            sync_folder(self._path.parent)
        except OSError as error:
            raise unwritable(self._path, error) from None

    def close(self) -> None:
        self._file.close()
        os.close(self._lock)

    @property
    def next_number(self) -> int:
        return self._highest + 1

    def undoable(self) -> Step | None:
        """The newest step in force."""
        return next(reversed(self.steps.values()), None)

    def labels(self) -> dict[str, str | None]:
        """The labels of the images of all steps in force, by the images' identifiers."""
        return {image.image: step.label for step in self.steps.values() for image in step.images}

    def append(self, step: Step) -> None:
        """Adds a step, durably. Raises StateError: it cannot be written, and nothing has changed."""
        line = json.dumps(msgspec.to_builtins(step)).encode() + b"\n"
        try:
            try:
                written = self._file.write(line)
                if written != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(self._file.fileno())
            except OSError:
                self._file.truncate(self._size)
                raise
        except OSError as error:
            raise unwritable(self._path, error) from None
        self._size += len(line)
        self._take(step)

    def _take(self, step: Step) -> None:
        self.last = step
        self._highest = max(self._highest, step.number)
        if step.undoes is not None:
            self.steps.pop(step.undoes, None)
        elif step.images:
            self.steps[step.number] = step
        else:
            self.steps.pop(step.number, None)

    def _read(self) -> int:
        """Reads all complete lines; returns the number of their bytes."""
        self._file.seek(0)
        size = 0
        for line in self._file.read().split(b"\n")[:-1]:
            size += len(line) + 1
            try:  # json, for names that are no UTF-8
                self._take(msgspec.convert(json.loads(line), Step))
            except (ValueError, RecursionError) as error:
                log.warning("%s: skipped a line that is not a step (%s)", self._path, error)
        return size
