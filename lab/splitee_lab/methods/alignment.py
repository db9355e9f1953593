# SPDX-License-Identifier: Apache-2.0
"""Alignment of an auxiliary network with a trunk: its gradients at the cut are to be the trunk's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

EPOCHS = 5  # over the samples, of one alignment


@dataclass(frozen=True)
class Target:
    """Of one batch: features and the gradients they get from the trunk (B, *feature_shape), labels (B,)."""

    features: Tensor
    labels: Tensor
    gradients: Tensor


def undisturbed(part: nn.Module) -> Callable[[Tensor], Tensor]:
    """`part` as it computes now, but its buffers, BatchNorm's running statistics, stay as they are."""
    buffers = {name: buffer.clone() for name, buffer in part.named_buffers()}
    return lambda features: functional_call(part, buffers, (features,))


def feature_gradients(
    part: Callable[[Tensor], Tensor],
    features: Tensor,
    labels: Tensor,
    offsets: Tensor | float = 0.0,
    *,
    differentiable: bool = False,
) -> Tensor:
    """The gradients of the samples' cross-entropies with respect to their features: (B, *feature_shape).

    Where BatchNorm ties the samples of a batch together: of the sum of all.

    Args:
        part: features (B, *feature_shape) to logits (B, classes).
        labels: (B,).
        offsets: (classes,), added to the logits.
        differentiable: with respect to the weights of `part`.
    """
    features = features.detach().requires_grad_()
    # Attention's fused kernels have no second derivative.
    with sdpa_kernel(SDPBackend.MATH) if differentiable else nullcontext():
        logits = part(features).float()
    loss = F.cross_entropy(logits + offsets, labels, reduction="sum")
    (gradients,) = torch.autograd.grad(loss, features, create_graph=differentiable)
    return gradients


def gradient_error(auxiliary: nn.Module, target: Target, offsets: Tensor, *, differentiable: bool) -> Tensor:
    """Squared error of the auxiliary's gradients, of a sample on average: a scalar.

    In the mode that the auxiliary is in; its running statistics stay as they are.
    """
    found = feature_gradients(
        undisturbed(auxiliary), target.features, target.labels, offsets, differentiable=differentiable
    )
    return (found - target.gradients).square().sum() / len(target.labels)


def align(
    auxiliary: nn.Module, optimizer: torch.optim.Optimizer, targets: Sequence[Target], offsets: Tensor
) -> None:
    """Trains the auxiliary by the error of its gradients (a second derivative), EPOCHS times over.

    A batch whose error is not finite, as BatchNorm's gradients can make it, trains nothing.
    """
    for _ in range(EPOCHS):
        for target in targets:
            error = gradient_error(auxiliary, target, offsets, differentiable=True)
            if not error.isfinite():
                continue
            optimizer.zero_grad(set_to_none=True)
            error.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
