# SPDX-License-Identifier: Apache-2.0
"""A network that twenty devices can train on two cores, for `--network benchmarks.tiny:network`."""

from __future__ import annotations

from torch import nn


def network(num_classes: int) -> nn.Module:
    """Three cuts; images (B, 3, 32, 32) to logits (B, num_classes)."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Linear(8 * 3 * 3, 16), nn.ReLU()),
        nn.Linear(16, num_classes),
    )
