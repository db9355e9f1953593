# SPDX-License-Identifier: Apache-2.0
"""Networks so small that a fleet trains in a moment, for `module:factory` settings."""

from __future__ import annotations

from torch import Tensor, nn


class Tiny(nn.Module):
    """Four stages: two convolutions with BatchNorm, a hidden layer with dropout, a classifier."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(8 * 3 * 3, 16), nn.ReLU(), nn.Dropout(0.2))
        self.classifier = nn.Linear(16, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.hidden(self.second(self.first(images))))
        return logits


def tiny(num_classes: int) -> nn.Module:
    return Tiny(num_classes)


def steady(num_classes: int) -> nn.Module:
    """Tiny without dropout: computes the same wherever its stages run."""
    network = Tiny(num_classes)
    network.hidden[3] = nn.Identity()
    return network


def normed(num_classes: int) -> nn.Module:
    """Steady with BatchNorm1d, which cannot train on a batch of one sample."""
    network = steady(num_classes)
    assert isinstance(network, Tiny)
    network.hidden[3] = nn.BatchNorm1d(16)
    return network


class Squeezing(nn.Module):
    """Like MobileNetV3: squeeze-and-excitation, and dropout before the classifier."""

    def __init__(self, num_classes: int) -> None:
        from torchvision.ops import (
            SqueezeExcitation,
        )  # takes a second, only for this network

        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.Hardswish())
        self.second = nn.Sequential(SqueezeExcitation(8, 4), nn.Conv2d(8, 8, 3), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(8, 16), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(16, num_classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.pool(self.second(self.first(images))).flatten(1))
        return logits


def squeezing(num_classes: int) -> nn.Module:
    return Squeezing(num_classes)
