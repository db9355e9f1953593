# SPDX-License-Identifier: Apache-2.0
"""The loss of a device's exits: from the labels, and from the best exit's predictions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def exits_loss(logits: Sequence[Tensor], labels: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """The joint loss of several exits for a batch.

    Each exit learns from the labels. All others also learn from the exit with the lowest loss in the batch,
    as in ReeFL (Lee et al., ICML 2024): the loss is the sum of their cross-entropies and of the divergences
    KL(best || other).

    Args:
        logits: (B, classes) of each exit, the device's own last.
        labels: (B,).
        offsets: (classes,), added to logits before they are compared with labels.

    Returns:
        The loss, a scalar; and the cross-entropy of the device's own exit on the labels.
    """
    on_labels = [F.cross_entropy(one + offsets, labels) for one in logits]
    if len(logits) == 1:
        return on_labels[0], on_labels[0]
    best = int(torch.stack(on_labels).argmin())
    taught = F.softmax(logits[best].detach(), dim=1)
    from_best = [
        F.kl_div(F.log_softmax(one, dim=1), taught, reduction="batchmean")
        for place, one in enumerate(logits)
        if place != best
    ]
    return torch.stack([*on_labels, *from_best]).sum(), on_labels[-1]
