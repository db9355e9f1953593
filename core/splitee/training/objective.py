# SPDX-License-Identifier: Apache-2.0
"""The correction of a device's loss for its own class mix."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from splitee.protocol.run_spec import RunSpec

MISSING_SHARE = 1e-3


def class_offsets(spec: RunSpec, labels: npt.NDArray[np.int64]) -> Tensor:
    """Offsets that a device's loss adds to its logits: (num_classes,), zeros without `balanced_loss`.

    They are the logarithms of the classes' shares in its `labels`. Then the logits need not learn how
    frequent a class is here (balanced softmax, Ren et al. 2020, arXiv 2007.10740), and average better with
    those of other devices. MISSING_SHARE keeps them finite for classes that the device does not have.
    """
    if not spec.balanced_loss:
        return torch.zeros(spec.num_classes)
    return log_shares(np.bincount(labels, minlength=spec.num_classes))


def log_shares(counts: npt.NDArray[np.int64]) -> Tensor:
    """The logarithms of the shares of classes with these counts: (num_classes,)."""
    return torch.from_numpy(np.log(counts / counts.sum() + MISSING_SHARE)).float()
