# SPDX-License-Identifier: Apache-2.0
"""How often each device's batches have had each class, for the trunk's loss to allow for it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from splitee.protocol.run_spec import RunSpec
from splitee.training.objective import log_shares


class ClassMix:
    """Counts the labels of the batches that trunks are trained with, by device.

    Where devices have unlike mixes of classes, a trunk that takes their batches in turn would follow each
    one's mix. The logarithm of the shares, added to its logits in training, spares it that: balanced softmax
    (Ren et al. 2020, arXiv 2007.10740), at the server as SCALA has it.
    """

    def __init__(self, spec: RunSpec) -> None:
        self._is_wanted = spec.balanced_loss
        self._classes = spec.num_classes
        self._counts: dict[str, Tensor] = {}

    def add(self, device: str, labels: Tensor) -> None:
        """Labels (B,) int64, in 0..classes - 1, of a batch that is about to be trained."""
        if self._is_wanted:
            found = torch.bincount(labels.cpu(), minlength=self._classes)
            self._counts[device] = self._counts.get(device, torch.zeros_like(found)) + found

    def offsets(self, device: str, place: torch.device) -> Tensor | float:
        """What is added to a trunk's logits: (classes,); 0 where the run does not ask for it."""
        if device not in self._counts:
            return 0.0
        return log_shares(self._counts[device].numpy()).to(place)

    def of(self, device: str) -> dict[str, Tensor]:
        """As `state`, of one device."""
        return {device: self._counts[device]} if device in self._counts else {}

    def take(self, counts: Mapping[str, Tensor]) -> None:
        """Go on from these counts, of these devices."""
        self._counts.update(counts)

    def state(self) -> dict[str, Tensor]:
        return dict(self._counts)

    def load(self, state: Mapping[str, Tensor]) -> None:
        self._counts = dict(state)
