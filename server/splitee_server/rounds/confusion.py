# SPDX-License-Identifier: Apache-2.0
"""Confusion between classes: counts of held-out images by their class and the predicted one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from splitee.protocol.accuracies import MOST_CLASSES, ClassRecall
from splitee.statistics import share_interval

Labels = npt.NDArray[np.integer]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Confusion:
    """Counts of images for K classes.

    Attributes:
        images: (K,), images of each class.
        predicted: (K,), images that were predicted as each class.
        hits: (K,), images of each class that were predicted as this class.
        matrix: (K, K), class by predicted class; None if K is above MOST_CLASSES.
    """

    images: Counts
    predicted: Counts
    hits: Counts
    matrix: Counts | None

    @classmethod
    def count(cls, labels: Labels, predictions: Labels, classes: int) -> Confusion:
        """Count images with the `labels` (N,) and `predictions` (N,), both below `classes`."""
        images, predicted, hits = (
            np.bincount(of, minlength=classes) for of in (labels, predictions, labels[labels == predictions])
        )
        if classes > MOST_CLASSES:
            return cls(images, predicted, hits, None)
        cells = np.bincount(labels.astype(np.int64) * classes + predictions, minlength=classes**2)
        return cls(images, predicted, hits, cells.reshape(classes, classes))


def class_name(names: Sequence[str], index: int) -> str:
    """Name of a class, also of one beyond the names that are known."""
    return names[index] if index < len(names) else f"class {index}"


def class_recalls(confusion: Confusion, names: Sequence[str]) -> tuple[ClassRecall, ...]:
    """The recall of each class that has images."""
    return tuple(
        ClassRecall(
            class_name(names, int(index)),
            int(confusion.images[index]),
            round(int(confusion.hits[index]) / int(confusion.images[index]), 6),
        )
        for index in np.flatnonzero(confusion.images)
    )


def weakest_class(recalls: Sequence[ClassRecall]) -> ClassRecall | None:
    """The class whose recall has the lowest upper bound of its 95 % interval.

    A class with a single missed image is not called weak, because that may be chance.
    """
    return min(recalls, key=lambda found: share_interval(found.recall, found.images)[1], default=None)
