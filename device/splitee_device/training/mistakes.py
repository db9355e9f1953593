# SPDX-License-Identifier: Apache-2.0
"""The most confident mistakes of an exit: images worth checking, because their labels may be wrong."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

KEPT = 10


@dataclass(frozen=True, order=True)
class Mistake:
    """An image for which the exit predicted a wrong class; `probability`: of the predicted class."""

    probability: float
    number: int  # of the image in its set
    label: int
    predicted: int


class Mistakes:
    """The KEPT most confident mistakes of an evaluation; an image that occurs twice counts once."""

    def __init__(self) -> None:
        self._found: set[Mistake] = set()

    def note(
        self,
        numbers: npt.NDArray[np.integer],
        labels: npt.NDArray[np.integer],
        predicted: npt.NDArray[np.integer],
        logits: npt.NDArray[Any],
    ) -> None:
        """Look through a batch: `numbers`, `labels` and `predicted` (B,), `logits` (B, classes)."""
        largest = logits.max(axis=1)
        probabilities = 1 / np.exp(logits - largest[:, None]).sum(axis=1)
        wrong = np.flatnonzero(predicted != labels)
        self._found.update(
            Mistake(float(probabilities[i]), int(numbers[i]), int(labels[i]), int(predicted[i]))
            for i in wrong
        )
        self._found = set(heapq.nlargest(KEPT, self._found))

    def as_json(self, name: Callable[[int], str], class_names: Sequence[str]) -> dict[str, Any]:
        """The most confident first. `name`: gives an image's name by its number."""
        return {
            "mistakes": [
                {
                    "image": name(one.number),
                    "class": class_names[one.label],
                    "predicted": _class_name(one.predicted, class_names),
                    "probability": round(one.probability, 4),
                }
                for one in sorted(self._found, reverse=True)
            ]
        }


def _class_name(label: int, names: Sequence[str]) -> str:
    """The name of a class, or its number if the run has more classes than this device has names."""
    return names[label] if label < len(names) else str(label)
