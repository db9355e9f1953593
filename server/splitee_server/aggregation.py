"""Cross-layer aggregation: each tensor is averaged over those who hold it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from splitee.messages import Weighting
from splitee.training import COUNTER


def average_by_name(
    holders: Mapping[str, Mapping[str, Tensor]], weights: Mapping[str, float]
) -> dict[str, Tensor]:
    """The weighted mean of every tensor over its holders: stage l over {i : l_i < l}.

    BatchNorm's running mean and variance are averaged like weights; its batch counter is left out.

    Args:
        holders: for each device, its trunk's tensors by name.
        weights: for each of these devices, its weight, such as its number of samples.

    Returns:
        Tensors by name, in float64 while they are summed, of the holders' type at the end.
    """
    names = sorted({name for tensors in holders.values() for name in tensors if not name.endswith(COUNTER)})
    means: dict[str, Tensor] = {}
    for name in names:
        having = [device for device in sorted(holders) if name in holders[device]]
        total = sum(weights[device] for device in having)
        if total <= 0:
            continue
        first = holders[having[0]][name]
        mean = torch.zeros_like(first, dtype=torch.float64)
        for device in having:
            mean.add_(holders[device][name], alpha=weights[device] / total)
        means[name] = mean.to(first.dtype)
    return means


def weigh(samples: Mapping[str, int], how: Weighting) -> dict[str, int]:
    """What each device counts in an average: its samples, or the same for all."""
    return {device: count if how == "samples" else 1 for device, count in samples.items()}
