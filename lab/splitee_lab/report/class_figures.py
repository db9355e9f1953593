# SPDX-License-Identifier: Apache-2.0
"""A fleet class by class, for its page: the confusion matrix, and each class's recall and precision."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from splitee.cli.words import images, interval, percent
from splitee.protocol.accuracies import MOST_CLASSES
from splitee_lab.report.plots import INK, RULE, SERIES, shortened, svg
from splitee_server.rounds.class_report import ClassReport, Figure

SHOWN = 20  # classes that fit a page
WORST = 6  # mistakes that are listed in place of the matrix if that has no room
STRONGEST = 0.6  # opacity of a cell with all of a row's images: its numbers stay readable
WIDTH, ROW, TOP = 10.4, 0.42, 0.8  # inches: of the drawing, of a row, for the columns' names
LEFT, ACROSS = 0.12, 0.79  # where the cells begin, and their share of the width

Counts = npt.NDArray[np.int64]


def class_rows(report: ClassReport) -> Iterator[tuple[str, ...]]:
    """Rows for the first MOST_CLASSES classes: name, recall by the exit and always offloaded, adaptive recall
    with its interval and images, and adaptive precision with its interval and images.
    """
    fleet = report.fleet
    exits, trunks = (
        {found.name: found.recall for found in figures.classes} for figures in (fleet.exit, fleet.trunk)
    )
    for found in fleet.adaptive.classes[:MOST_CLASSES]:
        yield (
            found.name,
            _share(exits.get(found.name)),
            _share(trunks.get(found.name)),
            *_with_interval(found.recall),
            *_with_interval(found.precision),
        )


def confusion_plot(report: ClassReport) -> str | None:
    """The adaptive predictions of the fleet as an SVG; None if there is no matrix, or no image."""
    cells = report.fleet.adaptive.confusion
    if cells is None or not report.fleet.images:
        return None
    counts = np.array(cells, np.int64)
    shown = most_confused(counts)
    names = [report.class_names[index] for index in shown]
    height = len(shown) * ROW + TOP
    images = counts.sum(axis=1)[shown]
    return svg(
        "confusion",
        height,
        (LEFT, 0, ACROSS, 1 - TOP / height),
        lambda axes: _draw(axes, counts[np.ix_(shown, shown)], images, names),
        width=WIDTH,
    )


def confusions(report: ClassReport) -> Iterator[tuple[str, str, str]]:
    """The most frequent mistakes of adaptive predictions: class, predicted class, images with their share."""
    cells = report.fleet.adaptive.confusion
    if cells is None:
        return
    counts = np.array(cells, np.int64)
    images = counts.sum(axis=1)
    wrong = counts - np.diag(counts.diagonal())
    for place in np.argsort(-wrong, axis=None, kind="stable")[:WORST]:
        row, column = divmod(int(place), len(counts))
        if wrong[row, column]:
            share = percent(wrong[row, column] / images[row])
            names = report.class_names[row], report.class_names[column]
            yield *names, f"{wrong[row, column]:,} of {images[row]:,} ({share})"


def most_confused(counts: Counts) -> list[int]:
    """The classes that are shown, in their order: all, or the SHOWN with the most wrong predictions."""
    seen = np.flatnonzero(counts.sum(axis=0) + counts.sum(axis=1))
    wrong = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
    ranked = seen[np.argsort(-wrong[seen], kind="stable")]
    return sorted(ranked[:SHOWN].tolist())


def _draw(axes: Axes, counts: Counts, images: Counts, names: list[str]) -> None:
    """A cell for each class (down) and predicted class (across): images, and their share of the class's."""
    size = len(names)
    shares = counts / np.maximum(images, 1)[:, None]
    for row, column in np.ndindex(size, size):
        colour = SERIES[0] if row == column else SERIES[1]
        share = float(shares[row, column])
        axes.add_patch(Rectangle((column, row), 1, 1, facecolor=colour, alpha=STRONGEST * share, linewidth=0))
        if counts[row, column]:
            centred = partial(axes.text, ha="center", va="center", color=INK)
            centred(column + 0.5, row + 0.32, f"{counts[row, column]:,}", size=9)
            centred(column + 0.5, row + 0.72, percent(share), size=7)
    for index, name in enumerate(names):
        axes.text(-0.08, index + 0.5, shortened(name), ha="right", va="center", color=INK)
        axes.text(index + 0.4, -0.12, shortened(name), ha="left", va="bottom", rotation=30, color=INK)
    axes.hlines(range(size + 1), 0, size, color=RULE, linewidth=0.8)
    axes.vlines(range(size + 1), 0, size, color=RULE, linewidth=0.8)
    axes.set_xlim(0, size)
    axes.set_ylim(size, 0)
    axes.axis("off")


def _share(figure: Figure | None) -> str:
    return percent(figure.share if figure else None)


def _with_interval(figure: Figure) -> tuple[str, str]:
    """A share, and the text below it with interval and images: "70.8 to 79.2, 400 images"."""
    if figure.share is None:
        return "-", ""
    return percent(figure.share), f"{interval(figure.share, figure.images)}, {images(figure.images)}"
