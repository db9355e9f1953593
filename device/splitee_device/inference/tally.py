# SPDX-License-Identifier: Apache-2.0
"""A summary of many predictions: the count of each class, the offloaded share, and the correct ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from splitee.inference.predictor import Prediction
from splitee.statistics import wilson


class Tally:
    """Counts predictions.

    Attributes:
        predicted: number of images.
        offloaded: number of them that were offloaded, whether the trunk's prediction came in time or not.
    """

    def __init__(self) -> None:
        self.predicted = 0
        self.offloaded = 0
        self._failed = 0  # offloaded, without the server's prediction
        self._by_class: Counter[str] = Counter()
        self._labelled = 0
        self._right = 0

    def add(self, prediction: Prediction, label: str | None = None) -> None:
        """`label`: the true class of the image, if it is known."""
        self.predicted += 1
        self.offloaded += prediction.source != "exit"
        self._failed += prediction.source == "local-fallback"
        self._by_class[prediction.label] += 1
        if label is not None:
            self._labelled += 1
            self._right += prediction.label == label

    def lines(self) -> Iterator[str]:
        """The summary for the user."""
        yield f"{self.predicted} images: " + ", ".join(
            f"{label} {count}" for label, count in self._by_class.most_common()
        )
        if self.offloaded:
            failures = f", {self._failed} of them without the server's prediction" if self._failed else ""
            yield f"offloaded: {self.offloaded} ({self.offloaded / self.predicted:.1%}){failures}"
        if self._labelled:
            low, high = wilson(self._right, self._labelled)
            yield (
                f"right, where the folder is a class: {self._right} of {self._labelled} "
                f"({self._right / self._labelled:.1%}; 95 % interval {low:.1%} to {high:.1%})"
            )


def class_of(file: Path, root: Path, class_names: Collection[str]) -> str | None:
    """The class that the innermost folder of `file` names, from `root` on; None: no folder is a class.

    `root`: the folder that was given, which counts too; or the file.
    """
    if file == root:
        return None
    folders = (root.resolve().name, *file.relative_to(root).parts[:-1])
    return next((name for name in reversed(folders) if name in class_names), None)
