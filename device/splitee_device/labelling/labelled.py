# SPDX-License-Identifier: Apache-2.0
"""The labelled images: their features, whether they are enough, and a table of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np

from splitee.cli.plain_text import plain
from splitee.inference.uncertainty import Array
from splitee_device.data.folder import find_classes
from splitee_device.labelling.class_names import NONE_OF_THESE
from splitee_device.labelling.journal import Step
from splitee_device.labelling.kept_features import KeptFeatures
from splitee_device.labelling.learning_curve import Enough, how_much_is_enough
from splitee_device.labelling.linear_exit import Labels

COLUMNS = ("file", "label", "time", "guess", "probability", "entropy")
FORMULA = "=+-@\t\r"  # characters with which a spreadsheet begins a formula


def features_of_labelled(
    data: Path, kept: KeptFeatures, stop: Callable[[], bool] = lambda: False
) -> tuple[Array, Labels, tuple[str, ...]]:
    """Features (N, D) and labels (N,) of the images that can be read, and the classes' names.

    Raises DataError: the class folders cannot be read.
    """
    files = find_classes(data).files
    names = tuple(files)
    paths = [Path(path) for name in names for path in files[name]]
    numbers = np.repeat(np.arange(len(names)), [len(files[name]) for name in names])
    rows, labels = [], []
    for (_, row), label in zip(kept.of(paths, stop), numbers, strict=False):
        if row is not None:
            rows.append(row[0])
            labels.append(int(label))
    features = np.stack(rows).astype(np.float32) if rows else np.zeros((0, 1), np.float32)
    return features, np.array(labels, np.int64), names


def is_it_enough(data: Path, kept: KeptFeatures, stop: Callable[[], bool] = lambda: False) -> Enough:
    """Whether the images in `data` are enough. Raises DataError: the class folders cannot be read."""
    return how_much_is_enough(*features_of_labelled(data, kept, stop))


def as_csv(data: Path, steps: list[Step]) -> str:
    """A table with a line for every image that is in a class folder or labelled as none of these.

    A line has the label and, if the image was labelled on the page, the time and the model's prediction.

    Raises DataError: the class folders cannot be read.
    """
    by_target = {image.target: (step.time, image) for step in steps for image in step.images}
    files = dict(find_classes(data).files)
    none = data / NONE_OF_THESE
    files[""] = sorted(str(path) for path in none.iterdir()) if none.is_dir() else []
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(COLUMNS)
    for label, paths in files.items():
        for path in paths:
            name = str(Path(path).relative_to(data))
            row: list[object] = [_cell(name), _cell(label)]
            if name in by_target:
                time, image = by_target[name]
                row += [time / 1000, _cell(image.guess), image.probability, image.entropy]
            writer.writerow(row)
    return table.getvalue()


def _cell(text: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    return f"'{plain(text)}" if text[:1] in FORMULA and text else plain(text)
