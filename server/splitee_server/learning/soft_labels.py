# SPDX-License-Identifier: Apache-2.0
"""The soft labels that the server holds: the trunk's answers in each device's last committed round."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from splitee.protocol.run_spec import RunSpec
from splitee.training.soft_labels import SoftLabels, rows_a_round, soften


class SoftLabelStore:
    """By device; the answers of the round under way count once it ends."""

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self._samples: dict[str, int] = {}
        self._held: dict[str, SoftLabels] = {}
        self._coming: dict[str, list[Tensor]] = {}

    def count(self, device: str, samples: int) -> None:
        """The device has so many training pictures; if it had another number, it has other pictures now."""
        if self._samples.get(device, samples) != samples:
            self._held.pop(device, None)
            self._coming.pop(device, None)
        self._samples[device] = samples

    def add(self, device: str, round_number: int, logits: Tensor) -> None:
        """What the trunk answered to the device's next batch; nobody learns from the last round's."""
        if self._spec.soft_labels and round_number < self._spec.rounds:
            self._coming.setdefault(device, []).append(soften(logits))

    def coming(self, device: str) -> list[Tensor]:
        """What was added of a device in the round under way."""
        return self._coming.get(device, [])

    def take(self, device: str, coming: list[Tensor]) -> None:
        """What was added of it elsewhere, in the place of what was here."""
        self._coming[device] = coming

    def end_round(self, number: int, devices: Iterable[str]) -> None:
        """Round `number` is over, with these devices in it; others keep what they have."""
        for device in devices:
            rows = torch.cat(self._coming.get(device, [torch.empty(0)]))
            if len(rows) == rows_a_round(self._spec, self._samples[device]):
                self._held[device] = SoftLabels(number, rows)
        self._coming = {}

    def of(self, device: str) -> SoftLabels | None:
        """What is held for the device's training pictures."""
        return self._held.get(device)

    def state(self) -> dict[str, Any]:
        return {device: vars(labels) for device, labels in self._held.items()}

    def load(self, state: dict[str, Any]) -> None:
        self._held = {device: SoftLabels(**labels) for device, labels in state.items()}
