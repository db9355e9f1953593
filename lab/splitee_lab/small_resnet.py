# SPDX-License-Identifier: Apache-2.0
"""A residual network for small images, as --network splitee_lab.small_resnet:resnet8 and resnet14."""

from __future__ import annotations

from torch import Tensor, nn


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2016, arXiv 1512.03385)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels_in != channels:
            conv = nn.Conv2d(channels_in, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(channels))

    def forward(self, features: Tensor) -> Tensor:
        inner = self.relu(self.bn1(self.conv1(features)))
        outer: Tensor = self.relu(self.bn2(self.conv2(inner)) + self.shortcut(features))
        return outer


class SmallResNet(nn.Module):
    """Stem, three groups of blocks at full, half and quarter resolution, and the classifier.

    `width`: channels of the first group; each further one has twice as many.
    """

    def __init__(self, num_classes: int, blocks: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        groups, channels = [], width
        for group in range(3):
            for index in range(blocks):
                stride = 2 if group and not index else 1
                groups.append(Block(channels, width << group, stride))
                channels = width << group
        self.blocks = nn.Sequential(*groups)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.blocks(self.stem(images))
        logits: Tensor = self.classifier(self.flatten(self.pool(features)))
        return logits


def resnet8(num_classes: int) -> nn.Module:
    """Seven 3x3 convolutions, from 32 channels, and the classifier: 5 stages."""
    return SmallResNet(num_classes, 1, 32)


def resnet14(num_classes: int) -> nn.Module:
    """Thirteen 3x3 convolutions, from 16 channels, and the classifier: 8 stages."""
    return SmallResNet(num_classes, 2, 16)
