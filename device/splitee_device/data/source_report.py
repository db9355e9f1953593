# SPDX-License-Identifier: Apache-2.0
"""A report on a source's content: images per class, what was ignored, and what may be wrong."""

from __future__ import annotations

import logging
import sys

import numpy as np

from splitee.cli.plain_text import plain_cell
from splitee.errors import DataError
from splitee_device.data.base import Source
from splitee_device.data.image_sets import LabelledImages

MOST_ROWS = 30  # of a table; if there are more classes, those with the fewest images are shown
IMBALANCE = 20  # a warning is logged if a class has this many times fewer images than another
NAMED = 5

log = logging.getLogger(__name__)


def report_source(
    spec: str, source: Source, train: LabelledImages, held_out: LabelledImages, skipped: list[str]
) -> None:
    """Log the device's images, and show them as a table. `skipped` names images that could not be read.

    Raises:
        DataError: there are too few to train on.
    """
    _report_unreadable(spec, len(train) + len(held_out), skipped)
    if len(train) < 2 or not len(held_out):  # normalisation needs two in a batch
        raise DataError(
            f"{spec}: expected two images or more to train on and one to hold out, got {len(train)} and "
            f"{len(held_out)}; add images"
        )
    classes = len(source.class_names)
    log.info("%s: %d training and %d held-out images of %d classes", spec, len(train), len(held_out), classes)
    counts = np.stack([np.bincount(part.labels, minlength=classes) for part in (train, held_out)], axis=1)
    _show(_rows(source.class_names, counts))
    if source.ignored:
        log.info("%s: ignored: %s", spec, ", ".join(source.ignored))
    _warn(spec, source, counts)


def _report_unreadable(spec: str, readable: int, skipped: list[str]) -> None:
    if not skipped:
        return
    named = ", ".join(skipped[:NAMED]) + (", ..." if len(skipped) > NAMED else "")
    if not readable:
        raise DataError(f"{spec}: none of its {len(skipped)} images can be read: {named}")
    total = readable + len(skipped)
    log.warning("%s: skipped %d unreadable of %d images: %s", spec, len(skipped), total, named)


def _warn(spec: str, source: Source, counts: np.ndarray) -> None:
    """`counts` (classes, 2): training and held-out images."""
    names, (training, held_out) = np.array(source.class_names), counts.T
    if source.empty:
        log.warning("%s: without images, and so no classes: %s", spec, _named(list(source.empty)))
    if not training.all():
        log.warning("%s: no images to train on of %s", spec, _named(list(names[training == 0])))
    if not held_out.all():
        log.warning("%s: no images held out of %s", spec, _named(list(names[held_out == 0])))
    most, least = training.argmax(), np.where(training > 0, training, training.max()).argmin()
    if training[most] > IMBALANCE * training[least]:
        log.warning(
            "%s: %d images of %s, %d of %s: a class with so few is hardly learnt; add images of it",
            spec, training[most], names[most], training[least], names[least],
        )  # fmt: skip


def _rows(names: tuple[str, ...], counts: np.ndarray) -> list[tuple[str, ...]]:
    """Class, training, held out: in the order of classes, or only the rarest of many."""
    shown = np.arange(len(names))
    if len(names) > MOST_ROWS:
        shown = np.sort(np.argsort(counts[:, 0], kind="stable")[:MOST_ROWS])
    rows: list[tuple[str, ...]] = [
        (names[place], str(counts[place, 0]), str(counts[place, 1])) for place in shown
    ]
    rest = np.delete(counts, shown, axis=0)
    if len(rest):
        rows.append((f"{len(rest)} others", *(_range(column.min(), column.max()) for column in rest.T)))
    return rows


def _show(rows: list[tuple[str, ...]]) -> None:
    """A table on a terminal, otherwise a log line for each class. Nothing if such lines are not logged."""
    if not log.isEnabledFor(logging.INFO):
        return
    if not sys.stderr.isatty():
        for name, training, held_out in rows:
            log.info("%s: %s to train on, %s held out", name, training, held_out)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("class")
    for heading in ("to train on", "held out"):
        table.add_column(heading, justify="right")
    for name, *counts in rows:
        table.add_row(plain_cell(name), *counts)
    Console(stderr=True).print(table)


def _range(least: int, most: int) -> str:
    return str(least) if least == most else f"{least}..{most}"


def _named(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
