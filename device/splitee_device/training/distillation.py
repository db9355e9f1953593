# SPDX-License-Identifier: Apache-2.0
"""Distillation: the exit learns from the trunk's predictions for the same images in an earlier round."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from splitee.protocol.run_spec import RunSpec
from splitee.training.epochs import epoch_batches
from splitee.training.soft_labels import SoftLabels


class Teacher:
    """Finds the soft label of each image. An image that was in no batch of that round has none."""

    def __init__(self, spec: RunSpec, device: str, samples: int, labels: SoftLabels | None) -> None:
        """`samples`: the number of the device's training images. `labels`: None: the loss is zero."""
        self._weight = spec.soft_labels
        self._labels = labels
        self._rows = np.full(samples, -1)  # index of each image's latest soft label
        if labels is not None:
            order = np.concatenate(list(epoch_batches(spec, device, labels.round, samples)))
            self._rows[order] = np.arange(len(order))

    def loss(self, indices: npt.NDArray[np.integer], logits: Tensor) -> Tensor:
        """Cross-entropy of `logits` (B, classes) to the soft labels of these images, weighted: a scalar."""
        if self._labels is None:
            return logits.new_zeros(())
        rows = torch.from_numpy(self._rows[indices])
        targets = self._labels.probabilities[rows.clamp(min=0)].to(logits.device).float()  # (B, classes)
        each = -(targets * F.log_softmax(logits, dim=1)).sum(dim=1)
        return self._weight * (each * (rows >= 0).to(logits.device)).mean()
