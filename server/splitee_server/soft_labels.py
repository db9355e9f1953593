"""The soft labels that the server holds: the trunk's answers in each device's last committed round."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from splitee.messages import RunSpec
from splitee.soft_labels import SoftLabels, rows_a_round, soften


class SoftLabelStore:
    """By device; the answers of the round under way count once it ends."""

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self._held: dict[str, SoftLabels] = {}
        self._coming: dict[str, list[Tensor]] = {}

    def add(self, device: str, round_number: int, logits: Tensor) -> None:
        """What the trunk answered to the device's next batch; nobody learns from the last round's."""
        if self._spec.soft_labels and round_number < self._spec.rounds:
            self._coming.setdefault(device, []).append(soften(logits))

    def end_round(self, number: int, devices: Iterable[str]) -> None:
        """Round `number` is over, with these devices in it; others keep what they have."""
        for device in devices:
            if device in self._coming:
                self._held[device] = SoftLabels(number, torch.cat(self._coming[device]))
        self._coming = {}

    def of(self, device: str, samples: int) -> SoftLabels | None:
        """The device's, as long as it has `samples` training pictures as it had then."""
        labels = self._held.get(device)
        fits = labels is not None and len(labels.probabilities) == rows_a_round(self._spec, samples)
        return labels if fits else None

    def state(self) -> dict[str, Any]:
        return {device: vars(labels) for device, labels in self._held.items()}

    def load(self, state: dict[str, Any]) -> None:
        self._held = {device: SoftLabels(**labels) for device, labels in state.items()}
