# SPDX-License-Identifier: Apache-2.0
"""The soft labels that the server holds: the trunk's predictions in each device's last committed round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from splitee.protocol.run_spec import RunSpec
from splitee.training.soft_labels import SoftLabels, rows_per_round, soften


class SoftLabelStore:
    """Soft labels by device; those of the current round count once it ends."""

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self._samples: dict[str, int] = {}
        self._held: dict[str, SoftLabels] = {}
        self._coming: dict[str, list[Tensor]] = {}

    def count(self, device: str, samples: int) -> None:
        """Note a device's number of training images; soft labels for another number are dropped."""
        if self._samples.get(device, samples) != samples:
            self._held.pop(device, None)
            self._coming.pop(device, None)
        self._samples[device] = samples

    def add(self, device: str, round_number: int, logits: Tensor) -> None:
        """Add the trunk's logits for the device's next batch; those of the last round are not needed."""
        if self._spec.soft_labels and round_number < self._spec.rounds:
            self._coming.setdefault(device, []).append(soften(logits))

    def forget(self, device: str) -> None:
        """A device drops out of the round: what was added for it does not count."""
        self._coming.pop(device, None)

    def coming(self, device: str) -> list[Tensor]:
        """What was added for a device in the current round."""
        return self._coming.get(device, [])

    def take(self, device: str, coming: list[Tensor]) -> None:
        """Replace what was added for a device by what another rank has added."""
        self._coming[device] = coming

    def end_round(self, number: int, devices: Mapping[str, int | None]) -> None:
        """Round `number` is over, with these devices in it; others keep what they have.

        `devices`: each with its number of training images when the round began; None: as now. If the number
        has changed, batches in the previous order may have been trained after that.
        """
        for device, samples in devices.items():
            if samples not in (None, self._samples[device]):
                continue
            rows = torch.cat(self._coming.get(device, [torch.empty(0)]))
            if len(rows) == rows_per_round(self._spec, self._samples[device]):
                self._held[device] = SoftLabels(number, rows)
        self._coming = {}

    def of(self, device: str) -> SoftLabels | None:
        """What is held for the device's training images."""
        return self._held.get(device)

    def state(self) -> dict[str, Any]:
        return {device: vars(labels) for device, labels in self._held.items()}

    def load(self, state: dict[str, Any]) -> None:
        self._held = {device: SoftLabels(**labels) for device, labels in state.items()}
