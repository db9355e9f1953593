# SPDX-License-Identifier: Apache-2.0
"""evaluation.json: the last evaluated round class by class, each figure with its number of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import msgspec
import numpy as np

from splitee.protocol.accuracies import MOST_CONFUSED_BY_DEVICE, ConfusionMatrix
from splitee.statistics import wilson
from splitee_server.rounds.confusion import Confusion, class_name
from splitee_server.rounds.evaluation import Predictions, Score

EVALUATION = "evaluation.json"  # in the server's state directory

Interval = tuple[float, float]  # of 95 %, Wilson's


class Figure(msgspec.Struct, frozen=True):
    """A share of `images`; None: there are none."""

    share: float | None
    images: int
    interval: Interval


class ClassFigures(msgspec.Struct, frozen=True):
    """One class. `recall`: over the images of the class; `precision`: over those predicted as this class."""

    name: str
    recall: Figure
    precision: Figure


class PredictorFigures(msgspec.Struct, frozen=True, omit_defaults=True):
    """Exit, trunk or both together.

    Attributes:
        classes: those of which there are images or predictions, in the order of the labels.
        confusion: (K, K) images, class by predicted class, of all K classes of the network; None above 256
            classes; for a device only for both together, and with at most 20 classes.
    """

    accuracy: Figure
    classes: tuple[ClassFigures, ...]
    confusion: list[list[int]] | None = None


class Evaluated(msgspec.Struct, frozen=True):
    """The held-out images of a device, or of the fleet."""

    images: int
    exit: PredictorFigures
    trunk: PredictorFigures
    adaptive: PredictorFigures


class ClassReport(msgspec.Struct, frozen=True):
    """The file's content; `class_names` are those of the confusion matrices' rows and columns."""

    run: str
    round: int
    class_names: tuple[str, ...]
    fleet: Evaluated
    devices: dict[str, Evaluated]


def class_report(
    run: str, number: int, scores: Mapping[str, Score], classes: int, names: Sequence[str]
) -> ClassReport:
    """The report of round `number`. `scores`: by device; `classes`: number of classes of the network."""
    return ClassReport(
        run,
        number,
        tuple(class_name(names, index) for index in range(classes)),
        _evaluated(Score.over(scores.values()).predictions, classes, names, of_fleet=True),
        {
            device: _evaluated(score.predictions, classes, names, of_fleet=False)
            for device, score in scores.items()
        },
    )


def confusion_matrix(found: Evaluated, most: int) -> ConfusionMatrix | None:
    """The matrix of adaptive predictions, without classes that have neither images nor predictions.

    None: it is not known, or has more than `most` classes.
    """
    matrix = found.adaptive.confusion
    if matrix is None:
        return None
    images, predicted = [sum(row) for row in matrix], [sum(column) for column in zip(*matrix, strict=True)]
    seen = [index for index in range(len(matrix)) if images[index] or predicted[index]]
    if not 0 < len(seen) <= most:
        return None
    return ConfusionMatrix(tuple(seen), tuple(tuple(matrix[row][column] for column in seen) for row in seen))


def _evaluated(found: Predictions, classes: int, names: Sequence[str], *, of_fleet: bool) -> Evaluated:
    def figures(predicted: np.ndarray, *, with_matrix: bool) -> PredictorFigures:
        return _figures(Confusion.count(found.labels, predicted, classes), names, with_matrix=with_matrix)

    return Evaluated(
        len(found),
        figures(found.exit, with_matrix=of_fleet),
        figures(found.trunk, with_matrix=of_fleet),
        figures(found.adaptive, with_matrix=of_fleet or classes <= MOST_CONFUSED_BY_DEVICE),
    )


def _figures(confusion: Confusion, names: Sequence[str], *, with_matrix: bool) -> PredictorFigures:
    images, predicted, hits = (of.tolist() for of in (confusion.images, confusion.predicted, confusion.hits))
    seen = np.flatnonzero(confusion.images + confusion.predicted).tolist()
    matrix = confusion.matrix.tolist() if with_matrix and confusion.matrix is not None else None
    return PredictorFigures(
        _figure(sum(hits), sum(images)),
        tuple(
            ClassFigures(
                class_name(names, index),
                recall=_figure(hits[index], images[index]),
                precision=_figure(hits[index], predicted[index]),
            )
            for index in seen
        ),
        matrix,
    )


@lru_cache(maxsize=1 << 12)  # devices have few images of a class, so the same counts are frequent
def _figure(hits: int, images: int) -> Figure:
    low, high = wilson(hits, images)
    return Figure(round(hits / images, 6) if images else None, images, (round(low, 6), round(high, 6)))
