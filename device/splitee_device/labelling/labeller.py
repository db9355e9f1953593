# SPDX-License-Identifier: Apache-2.0
"""Carries out a person's labels: moves images into class folders, and back."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from splitee.durable import sync_folder, unwritable
from splitee.errors import DataError, SpliteeError, StateError
from splitee_device.data.folder import find_classes
from splitee_device.labelling.class_names import NONE_OF_THESE, check_class_name, make_folder
from splitee_device.labelling.durable_moves import finish_move, free_name, move_file
from splitee_device.labelling.journal import Journal, LabelledElsewhere, Moved, Step
from splitee_device.labelling.unlabelled import Unlabelled, UnlabelledFolders, image_at

log = logging.getLogger(__name__)


@dataclass
class Outcome:
    """What one action did with its images.

    Attributes:
        moved: identifiers of those that were labelled, or moved back.
        already: those that had been labelled before, with their labels.
        gone: those that are no longer there.
        failed: why the others were not moved; "": there are no others.
        label: of the action; None: none of these, or nothing.
    """

    moved: list[str] = field(default_factory=list)
    already: dict[str, str | None] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)
    failed: str = ""
    label: str | None = None


Guess = Callable[[str], tuple[str, float, float] | None]
"""From an image's identifier: the predicted label, its probability, and the entropy; None: none yet."""


class Labeller:
    """The class folders in `data`, the unlabelled images, and the journal; usable by several threads.

    If the journal cannot be opened, as in a read-only folder, the images can be looked at all the same.
    """

    def __init__(self, data: Path, folders: Sequence[Path], guess: Guess = lambda _: None) -> None:
        """Raises DataError: a folder is missing, or one lies within another."""
        self.data = data.resolve()
        _check_apart(self.data, [folder.resolve() for folder in folders])
        self._folders = UnlabelledFolders(folders)
        self._guess = guess
        self._lock = threading.RLock()
        self._journal: Journal | None = None
        self._labels: dict[str, str | None] = {}
        self.unlabelled: dict[str, Unlabelled] = {}
        self.classes: dict[str, int] = {}
        self.none = 0
        try:
            self._opened()
        except LabelledElsewhere:
            raise
        except StateError as error:
            log.warning("%s", error)
        self.scan()

    def close(self) -> None:
        with self._lock:
            if self._journal is not None:
                self._journal.close()
                self._journal = None

    @property
    def undoable(self) -> int:
        """Number of steps that can be undone."""
        return 0 if self._journal is None else len(self._journal.steps)

    def scan(self) -> tuple[set[str], set[str]]:
        """Scans all folders; returns the identifiers of unlabelled images that have come, and that have gone.

        Raises DataError: the class folders cannot be read.
        """
        with self._lock:
            before, self.unlabelled = self.unlabelled, self._folders.scan()
            found = find_classes(self.data)
            self.classes = {name: len(files) for name, files in found.files.items()}
            self.none = found.others[f"in {NONE_OF_THESE}"]
            return self.unlabelled.keys() - before.keys(), before.keys() - self.unlabelled.keys()

    def add_class(self, name: str) -> None:
        """Raises DataError, StateError: the name is not allowed, or the folder cannot be made."""
        with self._lock:
            make_folder(self.data / check_class_name(name, self.classes))
            self.classes.setdefault(name, 0)

    def label(self, identifiers: Sequence[str], label: str | None) -> Outcome:
        """Moves images into the folder of the class `label`; None: none of these.

        Raises:
            DataError: there is no such class.
        """
        with self._lock:
            if label is not None and label not in self.classes:
                raise DataError("there is no such class: make it first")
            outcome = Outcome(label=label)
            try:
                journal = self._opened()
                images = list(self._present(dict.fromkeys(identifiers), outcome))
                if not images:
                    return outcome
                step = self._plan(images, label)
                journal.append(step)
            except (StateError, OSError) as error:
                outcome.failed = _line(error)
                return outcome
            self._carry_out(step, move_file, outcome)
            return outcome

    def undo(self) -> Outcome:
        """Undoes the newest step: its images return to where they were."""
        with self._lock:
            try:
                journal = self._opened()
                step = journal.undoable()
                if step is None:
                    return Outcome(failed="nothing to undo")
                outcome = Outcome(label=step.label)
                back = self._plan_back(step, journal.next_number)
                journal.append(back)
            except StateError as error:
                return Outcome(failed=str(error))
            came = {image.image for image in self._carry_out(back, move_file, outcome)}
            left = tuple(image for image in step.images if image.image not in came.union(outcome.gone))
            if left:
                _try_append(journal, replace(step, images=left))
            return outcome

    def images(self) -> list[Unlabelled]:
        """The unlabelled images, in the order of folders and names."""
        with self._lock:
            return list(self.unlabelled.values())

    def steps(self) -> list[Step]:
        """The steps in force, the oldest first."""
        with self._lock:
            return [] if self._journal is None else list(self._journal.steps.values())

    def _opened(self) -> Journal:
        """The journal. A last step that a kill interrupted is completed first. Raises StateError."""
        if self._journal is None:
            self._journal = Journal(self.data)
            self._labels = self._journal.labels()
            if self._journal.last is not None:
                self._finish(self._journal.last)
        return self._journal

    def _finish(self, step: Step) -> None:
        """Completes a step. Images that have taken the names of labelled ones meanwhile stay unlabelled."""
        labelled = {self.data / image.source: image.image for image in step.images if step.undoes is None}

        def finish(source: Path, target: Path) -> None:
            there = image_at(source)
            is_original = there is None or labelled.get(source, there.identifier) == there.identifier
            finish_move(source, target, is_original=is_original)

        self._carry_out(step, finish, Outcome())

    def _present(self, identifiers: Iterable[str], outcome: Outcome) -> Iterator[Unlabelled]:
        """Yields the images that are still there, and adds the others to the outcome."""
        for identifier in identifiers:
            image = self.unlabelled.get(identifier)
            if image is not None and image_at(image.path) == image:
                yield image
            elif identifier in self._labels:
                outcome.already[identifier] = self._labels[identifier]
            else:
                outcome.gone.append(identifier)
                self.unlabelled.pop(identifier, None)

    def _plan(self, images: Sequence[Unlabelled], label: str | None) -> Step:
        folder = self.data / (NONE_OF_THESE if label is None else label)
        make_folder(folder)
        taken: set[Path] = set()
        moved = []
        for image in images:
            target = _free(folder / image.name, taken)
            guess = self._guess(image.identifier) or ("", 0.0, 0.0)
            moved.append(Moved(image.identifier, self._text(image.path), self._text(target), *guess))
        return Step(self._opened().next_number, _now(), tuple(moved), label)

    def _plan_back(self, step: Step, number: int) -> Step:
        taken: set[Path] = set()
        images = tuple(
            replace(image, source=image.target, target=self._text(_free(self.data / image.source, taken)))
            for image in step.images
        )
        return Step(number, _now(), images, step.label, undoes=step.number)

    def _carry_out(self, step: Step, move: Callable[[Path, Path], None], outcome: Outcome) -> list[Moved]:
        """Moves the images of a step that is in the journal, up to the first that cannot be moved."""
        moved: list[Moved] = []
        folders: set[Path] = set()
        for image in step.images:
            source, target = self.data / image.source, self.data / image.target
            try:
                move(source, target)
            except FileNotFoundError:
                if os.path.lexists(source) and not target.parent.is_dir():
                    outcome.failed = f"there is no folder {target.parent} any more"
                    break
                outcome.gone.append(image.image)
                self.unlabelled.pop(image.image, None)
            except (OSError, StateError) as error:
                outcome.failed = _line(error)
                break
            else:
                folders.update((source.parent, target.parent))
                moved.append(image)
        try:
            for folder in folders:
                sync_folder(folder)
        except OSError as error:
            outcome.failed = _line(error)
        if step.undoes is None:
            self._note_labels(step, moved, outcome)
        else:
            self._note_return(moved, outcome)
        self._count(step.label, len(moved) if step.undoes is None else -len(moved))
        return moved

    def _note_labels(self, step: Step, moved: Sequence[Moved], outcome: Outcome) -> None:
        """Images that were not moved are removed from the journal's step."""
        for image in moved:
            self.unlabelled.pop(image.image, None)
            self._labels[image.image] = step.label
            outcome.moved.append(image.image)
        if len(moved) < len(step.images):
            _try_append(self._opened(), replace(step, images=tuple(moved)))

    def _note_return(self, moved: Sequence[Moved], outcome: Outcome) -> None:
        for image in moved:
            self._labels.pop(image.image, None)
            back = image_at(self.data / image.target)
            if back is not None:
                self.unlabelled[back.identifier] = back
                outcome.moved.append(back.identifier)

    def _count(self, label: str | None, change: int) -> None:
        if label is None:
            self.none += change
        else:
            self.classes[label] = self.classes.get(label, 0) + change

    def _text(self, path: Path) -> str:
        return os.fspath(path.relative_to(self.data) if path.is_relative_to(self.data) else path)


def _try_append(journal: Journal, step: Step) -> None:
    try:
        journal.append(step)
    except StateError as error:
        log.warning("%s", error)


def _free(path: Path, taken: set[Path]) -> Path:
    """A free name that no other image of the same step gets."""
    target, number = free_name(path), 2
    while target in taken:
        target = free_name(path.with_name(f"{path.stem[:200]}-{number}{path.suffix}"))
        number += 1
    taken.add(target)
    return target


def _line(error: OSError | SpliteeError) -> str:
    """The error in words for the user."""
    if isinstance(error, FileExistsError):
        return f"{error.filename} has just been taken by another file; try again"
    if isinstance(error, OSError):
        return str(unwritable(Path(str(error.filename2 or error.filename or "the folder")), error))
    return str(error)


def _check_apart(data: Path, folders: Sequence[Path]) -> None:
    for folder in folders:
        if folder == data or folder.is_relative_to(data) or data.is_relative_to(folder):
            raise DataError(
                f"{folder} and {data} lie within each other: unlabelled images need a folder of their own"
            )


def _now() -> int:
    return time.time_ns() // 1_000_000
