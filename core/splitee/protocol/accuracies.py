# SPDX-License-Identifier: Apache-2.0
"""Accuracies of a fleet on held-out images, as parts of a round's metrics."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from splitee.protocol.fields import Count, Fraction

MOST_CLASSES = 256  # whose recalls are sent
MOST_CONFUSED = 100  # classes of a fleet's confusion matrix that is sent
MOST_CONFUSED_BY_DEVICE = 20  # and of a device's: a fleet may have thousands of devices


class Accuracies(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Shares of held-out images; None: nothing was evaluated.

    Attributes:
        exit_accuracy: accuracy of the exit alone.
        trunk_accuracy: accuracy of the trunk alone.
        adaptive_accuracy: accuracy where the exit predicts up to the threshold and the trunk above it.
        offload_share: share of images whose entropy is above the threshold.
    """

    exit_accuracy: Fraction | None = None
    trunk_accuracy: Fraction | None = None
    adaptive_accuracy: Fraction | None = None
    offload_share: Fraction | None = None


class ClassRecall(msgspec.Struct, frozen=True):
    """The recall of one class by the adaptive prediction.

    Attributes:
        name: name of the class.
        images: held-out images of the class.
        recall: share of them that are predicted as this class.
    """

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    images: Count
    recall: Fraction


ClassRecalls = Annotated[tuple[ClassRecall, ...], Meta(max_length=MOST_CLASSES)]


class ReleasedThreshold(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The threshold up to which a released model predicts by itself.

    Attributes:
        threshold: uncertainty up to which the exit predicts.
        images: held-out images on which it was chosen; 0: too few, so it is the run's threshold.
        expected_offload: share of held-out images above the threshold, which are offloaded.
        expected_accuracy: accuracy of adaptive inference on the held-out images.
    """

    threshold: Fraction
    images: Count = 0
    expected_offload: Fraction | None = None
    expected_accuracy: Fraction | None = None


class ConfusionMatrix(msgspec.Struct, frozen=True):
    """Confusion matrix of the adaptive predictions: counts of held-out images.

    Attributes:
        classes: the K classes that have images or predictions, in the order of their labels.
        counts: K rows, one for each class, of K counts, one for each predicted class.
    """

    classes: Annotated[tuple[Count, ...], Meta(max_length=MOST_CONFUSED)]
    counts: Annotated[
        tuple[Annotated[tuple[Count, ...], Meta(max_length=MOST_CONFUSED)], ...],
        Meta(max_length=MOST_CONFUSED),
    ]

    def __post_init__(self) -> None:
        size = len(self.classes)
        if len(self.counts) != size or any(len(row) != size for row in self.counts):
            raise ValueError(f"expected {size} rows of {size} counts, one for each class")
