"""How good exits, trunks and their combination are on the devices' held-out pictures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]
Doubt = npt.NDArray[np.float32]
Right = npt.NDArray[np.bool_]


@dataclass
class Score:
    """Sums over the held-out samples of one device. Adaptive: the exit answers where it is sure enough."""

    samples: int = 0
    exit_right: int = 0
    trunk_right: int = 0
    adaptive_right: int = 0
    offloaded: int = 0
    answers: list[tuple[Doubt, Right, Right]] = field(default_factory=list)

    def add(
        self,
        labels: Labels,
        exit_labels: Labels,
        entropy: npt.NDArray[np.float32],
        trunk_labels: Labels,
        threshold: float,
    ) -> None:
        """One batch, all of shape (B,); the exit answers where its normalised entropy <= threshold."""
        offload = entropy > threshold
        adaptive = np.where(offload, trunk_labels, exit_labels)
        self.samples += len(labels)
        self.exit_right += int((exit_labels == labels).sum())
        self.trunk_right += int((trunk_labels == labels).sum())
        self.adaptive_right += int((adaptive == labels).sum())
        self.offloaded += int(offload.sum())
        self.answers.append((entropy, exit_labels == labels, trunk_labels == labels))

    @classmethod
    def over(cls, scores: Iterable[Score]) -> Score:
        """The sums over several devices."""
        total = cls()
        for score in scores:
            total.samples += score.samples
            total.exit_right += score.exit_right
            total.trunk_right += score.trunk_right
            total.adaptive_right += score.adaptive_right
            total.offloaded += score.offloaded
            total.answers += score.answers
        return total

    def held_out(self) -> tuple[Doubt, Right, Right]:
        """Of all samples, in their order: the exit's entropy, and whether exit and trunk are right."""
        doubt, exit_right, trunk_right = zip(*self.answers, strict=True)
        return np.concatenate(doubt), np.concatenate(exit_right), np.concatenate(trunk_right)

    def accuracies(self) -> dict[str, float]:
        """Fractions by the report's names; empty when there was nothing to evaluate."""
        if not self.samples:
            return {}
        return {
            "exit_accuracy": self.exit_right / self.samples,
            "trunk_accuracy": self.trunk_right / self.samples,
            "adaptive_accuracy": self.adaptive_right / self.samples,
            "offload_share": self.offloaded / self.samples,
        }
