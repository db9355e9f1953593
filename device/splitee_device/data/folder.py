# SPDX-License-Identifier: Apache-2.0
"""Images in one folder per class: DIR/CLASS/*.jpg and the like, also in subfolders."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from splitee.errors import DataError
from splitee.samples.images import IMAGE_SUFFIXES, UnreadableImage, content_digest, load_image
from splitee_device.data.base import DeferredImage, Indices, Source, Split

# Folders that systems create beside files: thumbnails, snapshots, bins.
SYSTEM_FOLDERS = frozenset(
    {
        "$RECYCLE.BIN", "#recycle", "#snapshot", "@eaDir", "@Recycle", "@Recently-Snapshot", "__MACOSX",
        "lost+found", "System Volume Information",
    }
)  # fmt: skip
HINTS = {".heic": "install pillow-heif", ".heif": "install pillow-heif"}
TRAINING = frozenset({"train", "training"})
TEST = frozenset({"test", "val", "valid", "validation"})


@dataclass
class Found:
    """What a walk through class folders has found.

    Attributes:
        files: paths of the images, by class.
        others: number of skipped files, by reason.
    """

    files: dict[str, list[str]] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)

    def ignored(self) -> tuple[str, ...]:
        return tuple(f"{count} {why}" for why, count in sorted(self.others.items()) if count)


def open_folder(root: Path) -> Source:
    """Each folder in `root` that has images is a class, in the order of names; there is no test split.

    Images in subfolders of a class's folder belong to the class. Hidden files and folders, and folders of the
    system, are skipped. Within a class, links to folders are not followed. Raises DataError.
    """
    found = find_classes(root)
    classes = tuple(sorted(name for name, files in found.files.items() if files))
    empty = tuple(sorted(found.files.keys() - classes))
    ignored = "; ignored: " + ", ".join(found.ignored()) if found.ignored() else ""
    if not found.files:
        raise DataError(f"{root}: holds no class folders; expected {root}/CLASS/*.jpg (or png, ...){ignored}")
    if not classes:
        raise DataError(f"{root}: its {len(empty)} class folders hold no images (*.jpg, *.png, ...){ignored}")
    files = [path for name in classes for path in found.files[name]]
    labels = np.repeat(np.arange(len(classes)), [len(found.files[name]) for name in classes])

    def images(indices: Indices) -> Iterator[DeferredImage]:
        return (partial(load_image, Path(files[index])) for index in indices)

    def keys(index: int) -> tuple[str, ...]:
        """Its content, because it may move to another class; and its path, the key of earlier releases."""
        path = os.path.relpath(files[index], root)
        try:
            return content_digest(Path(files[index])), path
        except (OSError, UnreadableImage):  # it is left out when it cannot be decoded
            return (path,)

    return Source(classes, Split(labels, images, files.__getitem__, keys=keys), None, empty, found.ignored())


def fingerprint(root: Path) -> bytes:
    """A value that changes with every image added, removed or rewritten. Raises DataError."""
    found = hashlib.sha256()
    for name, files in find_classes(root).files.items():
        for file in files:
            with contextlib.suppress(OSError):  # gone by now
                status = Path(file).stat()
                found.update(os.fsencode(f"{name}\0{file}\0{status.st_size}\0{status.st_mtime_ns}\n"))
    return found.digest()


def find_classes(root: Path) -> Found:
    """The images of each class folder in `root`, also of empty ones. Raises DataError."""
    found = Found()
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
        classes = [entry for entry in entries if entry.is_dir() and not is_foreign(entry.name)]
        _check_layout(root, [entry.name for entry in classes])
    except OSError as error:  # also for a link to itself, or a folder without permission
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from None
    for entry in entries:
        if entry in classes:
            found.files[entry.name] = []
            _walk(Path(entry.path), found, found.files[entry.name])
        elif entry.is_dir():
            _count_foreign(Path(entry.path), entry.name, found)
        elif is_image_name(entry.name):
            found.others["beside the class folders"] += 1
    return found


def _walk(folder: Path, found: Found, files: list[str]) -> None:
    """Add a class's images to `files`, by folder in the order of names; `found` counts other files."""
    for path, folders, names in os.walk(folder, onerror=_raise):
        for name in [name for name in folders if is_foreign(name)]:
            _count_foreign(Path(path, name), name, found)
        linked = [name for name in folders if Path(path, name).is_symlink()]
        found.others["linked folders, which are not followed"] += len(linked)
        folders[:] = sorted(name for name in folders if not is_foreign(name))
        for name in sorted(names):
            if name.startswith("."):
                found.others["hidden"] += is_image_name(name)
            elif is_image_name(name):
                files.append(os.path.join(path, name))  # noqa: PTH118  a Path takes ten times as much memory
            else:
                found.others[_kind(name)] += 1


def _count_foreign(folder: Path, name: str, found: Found) -> None:
    """Count the images in a folder that is not part of the data."""
    for _, _, names in os.walk(folder):
        found.others[f"in {name}"] += sum(map(is_image_name, names))


def _check_layout(root: Path, folders: list[str]) -> None:
    """Raises DataError: the folders are the parts of a data set, and the classes are in them."""
    lower = {name.lower(): name for name in folders}
    if not lower or not lower.keys() <= TRAINING | TEST or not lower.keys() & TRAINING:
        return
    training = next(root / lower[name] for name in sorted(lower.keys() & TRAINING))
    tests = [root / lower[name] for name in sorted(lower.keys() & TEST)]
    if any(path.is_dir() for path in training.iterdir()):
        hint = f" --test {tests[0]}" if tests else ""
        raise DataError(f"{root}: its classes are in {training}: give --data {training}{hint}")


def is_foreign(name: str) -> bool:
    """Whether a folder of this name is not part of the data."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def is_image_name(name: str) -> bool:
    """Whether a file of this name is an image."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def _kind(name: str) -> str:
    suffix = Path(name).suffix.lower()
    hint = f" ({HINTS[suffix]})" if suffix in HINTS else ""
    return (suffix or "without a suffix") + hint


def _raise(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from None
