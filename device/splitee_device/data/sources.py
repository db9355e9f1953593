# SPDX-License-Identifier: Apache-2.0
"""The forms of `--data`, which name a source of labelled images, and checks that apply to all of them."""

from __future__ import annotations

import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from splitee.errors import DataError
from splitee.protocol.fields import LONGEST_CLASS_NAME, MOST_CLASS_NAMES
from splitee.samples.images import IMAGE_SUFFIXES, is_image
from splitee_device.data.base import Labels, Source, Split, expanded
from splitee_device.data.builtin_sets import open_builtin
from splitee_device.data.folder import open_folder
from splitee_device.data.torchvision_sets import open_torchvision

_FORMS = "DIR (with DIR/CLASS/*.jpg), FILE.parquet, torchvision:NAME:ROOT, builtin:fashion-mnist"


def open_source(spec: str, test: str | None = None) -> Source:
    """The data set that `spec` names, with checked labels; no image is decoded yet.

    Args:
        test: names another data set, of the same classes, whose images become the test split.

    Raises:
        DataError: a source is missing, empty, or has one class; or a test image has another class.
    """
    source = _open(spec)
    present = np.unique(source.train.labels)
    if len(present) == 1:
        raise DataError(
            f"{spec}: all {len(source.train.labels)} images are of one class, "
            f"{source.class_names[present[0]]!r}; training needs two or more"
        )
    return source if test is None else _with_test(source, spec, test)


def in_order_of(source: Source, class_names: tuple[str, ...]) -> Source:
    """The source with its classes numbered as in `class_names`, if they match.

    They match if they include all classes that have images, and otherwise only classes that are named without
    images. Other names leave the source as it is.
    """
    own = set(source.class_names)
    if not own <= set(class_names) <= own.union(source.empty):
        return source
    places = {name: place for place, name in enumerate(class_names)}
    numbers = np.array([places[name] for name in source.class_names])
    test = _renumbered(source.test, numbers) if source.test is not None else None
    empty = tuple(name for name in source.empty if name not in places)
    return replace(
        source, class_names=class_names, train=_renumbered(source.train, numbers), test=test, empty=empty
    )


def _open(spec: str) -> Source:
    try:
        source = _open_unchecked(spec)
    except OSError as error:  # no permission, a name that is too long, a disk that fails
        raise DataError(f"{spec}: cannot be read: {error.strerror}") from None
    for split in filter(None, (source.train, source.test)):
        _check_labels(spec, split.labels, source.class_names)
    _check_names(spec, source)
    return source


def _open_unchecked(spec: str) -> Source:
    kind, _, rest = spec.partition(":")
    if kind == "builtin":
        return open_builtin(rest)
    if kind == "torchvision":
        return open_torchvision(rest)
    path = expanded(spec)
    if path.is_dir():
        return open_folder(path)
    if path.is_file():
        return _open_file(path)
    raise DataError(f"no images at {spec!r}: there is no such folder or file; expected {_FORMS}")


def _open_file(path: Path) -> Source:
    if path.suffix.lower() in IMAGE_SUFFIXES or is_image(path):
        raise DataError(
            f"{path} is a single image, which is no data set; expected a folder with a folder for each "
            f"class: DIR/CLASS/{path.name}"
        )
    if zipfile.is_zipfile(path) or tarfile.is_tarfile(path):
        raise DataError(f"{path} is an archive: unpack it, and give the folder that holds the class folders")
    if not _begins_with(path, b"PAR1"):
        raise DataError(f"{path} cannot be read as a Parquet file; expected {_FORMS}")
    from splitee_device.data.parquet import open_parquet  # loads pyarrow

    return open_parquet(path)


def _begins_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def _with_test(source: Source, spec: str, test: str) -> Source:
    other = _open(test)
    split = other.test if other.test is not None else other.train
    places = {name: place for place, name in enumerate(source.class_names)}
    used = [other.class_names[label] for label in np.unique(split.labels)]
    unknown = [name for name in used if name not in places]
    if unknown:
        raise DataError(
            f"--test {test} has images of {', '.join(map(repr, unknown[:5]))}, --data {spec} has none of it"
        )
    numbers = np.array([places.get(name, -1) for name in other.class_names])
    ignored = (*source.ignored, *(f"{what} of --test" for what in other.ignored))
    return replace(source, test=_renumbered(split, numbers), ignored=ignored)


def _renumbered(split: Split, numbers: Labels) -> Split:
    """The same images; those of class i get the label `numbers[i]`."""
    return replace(split, labels=numbers[split.labels])


def _check_names(spec: str, source: Source) -> None:
    """Raises DataError: there are classes that no message can name."""
    if len(source.class_names) > MOST_CLASS_NAMES:
        raise DataError(f"{spec}: {len(source.class_names)} classes; expected at most {MOST_CLASS_NAMES}")
    for name in (*source.class_names, *source.empty):
        is_short = 0 < len(name) <= LONGEST_CLASS_NAME or name in source.empty  # these need not be sent
        if not is_short or name.encode(errors="replace").decode() != name:
            raise DataError(
                f"{spec}: a class cannot be called {name[:40]!r}{'...' * (len(name) > 40)}: expected 1 to "
                f"{LONGEST_CLASS_NAME} characters in UTF-8"
            )


def _check_labels(spec: str, labels: Labels, class_names: tuple[str, ...]) -> None:
    if len(labels) == 0:
        raise DataError(f"{spec}: holds no images; expected {_FORMS}")
    outside = np.flatnonzero((labels < 0) | (labels >= len(class_names)))
    if len(outside):
        raise DataError(
            f"{spec}: image {outside[0]} has label {labels[outside[0]]}; "
            f"expected 0..{len(class_names) - 1} for its {len(class_names)} classes"
        )
