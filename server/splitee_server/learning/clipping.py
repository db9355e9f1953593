# SPDX-License-Identifier: Apache-2.0
"""Clips updates of client networks to a multiple of the median, and detects contradictory ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median

import torch
from torch import Tensor

from splitee.training.batchnorm_statistics import is_statistic
from splitee.training.state import COUNTER

CONTRARY = -0.3  # cosine of two updates; those of honest devices may be a little below 0

Weights = Mapping[str, Tensor]


def clip_updates(trained: Mapping[str, Weights], starts: Mapping[str, Weights], multiple: float) -> None:
    """Shorten, in place, updates (a device's weights minus its start) that are too large.

    An update's size is the root of its mean square, so that networks of different cuts compare; the limit is
    `multiple` of the devices' median. Parameters and BatchNorm's statistics, which have other scales, are
    measured and clipped separately. Clipped weights lie on the line to the start: a variance stays above 0.

    Args:
        trained: each device's tensors by name.
        starts: for the same devices, these tensors when the round began.
    """
    for statistics in (False, True):
        sizes = {
            device: update_size(tensors, starts[device], _names(tensors, statistics))
            for device, tensors in trained.items()
        }
        limit = multiple * median(sizes.values()) if sizes else 0.0
        for device, size in sizes.items():
            if size > limit:
                _shorten(trained[device], starts[device], _names(trained[device], statistics), limit / size)


def update_size(tensors: Weights, start: Weights, names: Iterable[str]) -> float:
    """The root mean square of `tensors` - `start` over the coordinates of `names`."""
    squares, count = 0.0, 0
    for name in names:
        squares += float((tensors[name].double() - start[name].double()).square().sum())
        count += tensors[name].numel()
    return math.sqrt(squares / max(count, 1))


def contradict(trained: Sequence[Weights], starts: Sequence[Weights], prefix: str) -> bool:
    """Whether two devices' updates of the parameters with this prefix point away from each other.

    Their mean would undo what one of them has learnt, and with two it is unknown which is wrong. Two that
    began the round with different weights have contradicted each other before.
    """
    names = [name for name in _names(trained[0], statistics=False) if name.startswith(prefix)]
    if any(not torch.equal(starts[0][name], starts[1][name]) for name in names):
        return True
    first, second = (
        torch.cat([(tensors[name].double() - starts[0][name].double()).flatten() for name in names])
        for tensors in trained
    )
    return bool(first @ second < CONTRARY * first.norm() * second.norm())


@torch.no_grad()
def _shorten(tensors: Weights, start: Weights, names: Iterable[str], factor: float) -> None:
    for name in names:
        begun = start[name].double()
        tensors[name].copy_(begun + factor * (tensors[name].double() - begun))


def _names(tensors: Weights, statistics: bool) -> list[str]:
    return [
        name for name in sorted(tensors) if not name.endswith(COUNTER) and is_statistic(name) == statistics
    ]
