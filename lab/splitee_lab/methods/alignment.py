# SPDX-License-Identifier: Apache-2.0
"""Aligns an auxiliary network with a trunk, so that its gradients at the cut match the trunk's."""

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
    """One batch: features and their gradients by the trunk, both (B, *feature_shape), and labels (B,)."""

    features: Tensor
    labels: Tensor
    gradients: Tensor


def with_fixed_buffers(part: nn.Module) -> Callable[[Tensor], Tensor]:
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

    If BatchNorm couples the samples of a batch, they are the gradients of the sum.

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
    """Squared error of the auxiliary's gradients, on average over samples: a scalar.

    It is computed in the auxiliary's present mode; its running statistics do not change.
    """
    found = feature_gradients(
        with_fixed_buffers(auxiliary), target.features, target.labels, offsets, differentiable=differentiable
    )
    return (found - target.gradients).square().sum() / len(target.labels)


def align(
    auxiliary: nn.Module, optimizer: torch.optim.Optimizer, targets: Sequence[Target], offsets: Tensor
) -> None:
    """Train the auxiliary on the error of its gradients (a second derivative), for EPOCHS epochs.

    A batch whose error is not finite, which BatchNorm's gradients can cause, is skipped.
    """
    for _ in range(EPOCHS):
        for target in targets:
            error = gradient_error(auxiliary, target, offsets, differentiable=True)
            if not error.isfinite():
                continue
            optimizer.zero_grad(set_to_none=True)
            error.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
