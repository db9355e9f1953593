# SPDX-License-Identifier: Apache-2.0
"""Counts of classes in each device's batches, with which the trunk's loss corrects for unequal shares."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from splitee.protocol.run_spec import RunSpec
from splitee.training.objective import log_shares


class ClassMix:
    """Counts the labels of the batches that trunks are trained with, by device.

    If devices have different mixes of classes, a trunk that takes their batches in turn would follow each
    one's mix. Adding the logarithm of the shares to its logits in training prevents that: balanced softmax
    (Ren et al. 2020, arXiv 2007.10740), used at the server as in SCALA.
    """

    def __init__(self, spec: RunSpec) -> None:
        self._is_wanted = spec.balanced_loss
        self._classes = spec.num_classes
        self._counts: dict[str, Tensor] = {}
        self._before: dict[str, Tensor | None] = {}  # the round, of devices with batches in it

    def add(self, device: str, labels: Tensor) -> None:
        """Labels (B,) int64, in 0..classes - 1, of a batch that is about to be trained."""
        if self._is_wanted:
            found = torch.bincount(labels.cpu(), minlength=self._classes)
            self._before.setdefault(device, self._counts.get(device))
            self._counts[device] = self._counts.get(device, torch.zeros_like(found)) + found

    def offsets(self, device: str, place: torch.device) -> Tensor | float:
        """Offsets to add to a trunk's logits: (classes,); 0 if the run does not want them."""
        if device not in self._counts:
            return 0.0
        return log_shares(self._counts[device].numpy()).to(place)

    def forget(self, device: str) -> None:
        """A device drops out of the round: its batches in it do not count."""
        if device in self._before:
            before = self._before.pop(device)
            if before is None:
                del self._counts[device]
            else:
                self._counts[device] = before

    def end_round(self) -> None:
        """The round is over: what it has added stays."""
        self._before = {}

    def of(self, device: str) -> dict[str, Tensor]:
        """As `state`, for one device."""
        return {device: self._counts[device]} if device in self._counts else {}

    def take(self, counts: Mapping[str, Tensor]) -> None:
        """Replace the counts of these devices."""
        self._counts.update(counts)

    def state(self) -> dict[str, Tensor]:
        return dict(self._counts)

    def load(self, state: Mapping[str, Tensor]) -> None:
        self._counts, self._before = dict(state), {}
