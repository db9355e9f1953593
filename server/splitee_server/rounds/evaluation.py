# SPDX-License-Identifier: Apache-2.0
"""Predictions of exits and trunks for the devices' held-out images, and their accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from splitee.inference.uncertainty import Array
from splitee.protocol.accuracies import Accuracies
from splitee.protocol.codecs import LARGEST
from splitee_export.combination import HeldOutLogits

Labels = npt.NDArray[np.int64]
Uncertainty = npt.NDArray[np.float32]
Hits = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Predictions:
    """For N held-out images, each (N,): labels, those that exit and trunk predicted, the exit's uncertainty.

    `offloaded`: where that is above the run's threshold.
    """

    labels: npt.NDArray[np.int16]
    exit: npt.NDArray[np.int16]
    trunk: npt.NDArray[np.int16]
    offloaded: Hits
    uncertainty: Uncertainty

    @classmethod
    def join(cls, batches: Sequence[Predictions]) -> Predictions:
        """All parts joined, in their order."""
        kept = batches or [_NONE]
        return cls(*(np.concatenate([vars(each)[field.name] for each in kept]) for field in fields(cls)))

    @property
    def adaptive(self) -> npt.NDArray[np.int16]:
        """The exit's predictions up to the threshold, the trunk's above it."""
        return np.where(self.offloaded, self.trunk, self.exit)

    def __len__(self) -> int:
        return len(self.labels)

    def accuracies(self) -> Accuracies:
        """Each None where there is no image."""
        if not len(self):
            return Accuracies()
        return Accuracies(
            exit_accuracy=float((self.exit == self.labels).mean()),
            trunk_accuracy=float((self.trunk == self.labels).mean()),
            adaptive_accuracy=float((self.adaptive == self.labels).mean()),
            offload_share=float(self.offloaded.mean()),
        )


def _half(logits: Array) -> npt.NDArray[np.float16]:
    return np.nan_to_num(logits).clip(-LARGEST, LARGEST).astype(np.float16)


_NO_LABELS = np.empty(0, np.int16)
_NONE = Predictions(_NO_LABELS, _NO_LABELS, _NO_LABELS, np.empty(0, np.bool_), np.empty(0, np.float32))


class Score:
    """The predictions for the held-out images of one device or several."""

    def __init__(
        self,
        batches: Iterable[Predictions] = (),
        logits: Iterable[HeldOutLogits] | None = None,
        *,
        room: int = 0,
    ) -> None:
        """`logits`: of the batches, if they are known.

        `room`: number of images whose logits of exit and trunk are kept, in half precision.
        """
        self._batches = list(batches)
        self._logits = list(logits or ())
        self._room = room

    def add(
        self,
        labels: Labels,
        exit_labels: Labels,
        uncertainty: Uncertainty,
        trunk_labels: Labels,
        threshold: float,
    ) -> None:
        """Add one batch; all arrays have shape (B,)."""
        self._batches.append(
            Predictions(
                labels.astype(np.int16),
                exit_labels.astype(np.int16),
                trunk_labels.astype(np.int16),
                uncertainty > threshold,
                uncertainty,
            )
        )

    def keep_logits(self, exit_logits: Array, trunk_logits: Array, labels: Labels) -> None:
        """Keep the logits (B, classes) of the last added batch, as long as there is room."""
        self._room -= len(labels)
        if self._room >= 0:
            self._logits.append(HeldOutLogits(_half(exit_logits), _half(trunk_logits), labels))

    @property
    def logits(self) -> HeldOutLogits | None:
        """Of all images, in their order; None: not all were kept."""
        if not self._logits or sum(map(len, self._logits)) < self.images:
            return None
        return HeldOutLogits.join(self._logits)

    @classmethod
    def over(cls, scores: Iterable[Score]) -> Score:
        """The images of several devices."""
        return cls(batch for score in scores for batch in score._batches)

    @property
    def images(self) -> int:
        return sum(map(len, self._batches))

    @property
    def predictions(self) -> Predictions:
        """For all images, in their order."""
        return Predictions.join(self._batches)

    def accuracies(self) -> Accuracies:
        """Each None where there was nothing to evaluate."""
        return self.predictions.accuracies()
