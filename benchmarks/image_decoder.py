# SPDX-License-Identifier: Apache-2.0
"""Estimates images from features by ridge regression, and measures the estimates."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS = 12_000  # places that the regression is fitted on, at most
MOST_INPUTS = 1200  # values by which a place is estimated: those of its neighbours, too, where they are few
CHUNK = 100  # images
PENALTIES = (1e-7, 1e-5, 1e-3, 1e-1)  # of the mean variance of an input; a tenth of the rows decides
Travels = Callable[[Tensor], Tensor]


class ImageDecoder:
    """Each place of a feature map gives the pixels that it stands for; a vector gives the whole image."""

    def __init__(self, features: Tensor, images: Tensor, travels: Travels) -> None:
        """Fits it.

        Args:
            features: (N, C, h, w) or (N, C).
            images: (N, 3, H, W), in 0 to 1.
            travels: what the wire makes of a batch of features.
        """
        self._travels = travels
        self._shape = images.shape[1:]
        self._block = images.shape[-1] // features.shape[-1] if features.ndim == 4 else images.shape[-1]
        self._size = 3 if features.ndim == 4 and 9 * features.shape[1] <= MOST_INPUTS else 1
        inputs, targets = self._rows(features, images)
        self._mean, self._target_mean = inputs.mean(0), targets.mean(0)
        self._std = inputs.std(0) + 1e-6
        self._weights = _ridge((inputs - self._mean) / self._std, targets - self._target_mean)

    def decode(self, features: Tensor) -> Tensor:
        """The images' estimates (N, 3, H, W), in 0 to 1."""
        found = []
        for chunk in torch.split(features, CHUNK):
            rows = (self._inputs(self._travels(chunk)) - self._mean) / self._std
            blocks = (rows @ self._weights + self._target_mean).reshape(
                len(chunk), -1, self._weights.shape[1]
            )
            found.append(F.fold(blocks.transpose(1, 2), self._shape[1:], self._block, stride=self._block))
        return torch.cat(found).clamp(0, 1)

    def _rows(self, features: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and pixels of at most ROWS places."""
        generator = torch.Generator().manual_seed(0)
        each = -(-ROWS * CHUNK // len(features))
        inputs, targets = [], []
        for chunk, shown in zip(torch.split(features, CHUNK), torch.split(images, CHUNK), strict=True):
            rows = self._inputs(self._travels(chunk))
            pixels = F.unfold(shown, self._block, stride=self._block).transpose(1, 2).flatten(0, 1)
            chosen = torch.randperm(len(rows), generator=generator)[:each]
            inputs.append(rows[chosen])
            targets.append(pixels[chosen])
        return torch.cat(inputs), torch.cat(targets)

    def _inputs(self, features: Tensor) -> Tensor:
        """(places, inputs) of all places of all images."""
        if features.ndim == 2:
            return features
        patches = F.unfold(features, self._size, padding=self._size // 2)
        rows: Tensor = patches.transpose(1, 2).flatten(0, 1)
        return rows


def _ridge(inputs: Tensor, targets: Tensor) -> Tensor:
    """The weights (d, q), with the penalty that does best on a tenth of the rows."""
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(1))
    tested, fitted = order[: len(order) // 10], order[len(order) // 10 :]
    rows = inputs[fitted]
    variances, vectors = torch.linalg.eigh((rows.T @ rows / len(rows)).double())
    projected = (vectors.T @ (rows.T @ targets[fitted] / len(rows)).double()).float()
    variances, vectors = variances.float().clamp(min=0), vectors.float()
    shown = inputs[tested] @ vectors
    mean = variances.mean()

    def error(penalty: float) -> float:
        estimate = shown @ (projected / (variances + penalty * mean)[:, None])
        return float((estimate - targets[tested]).square().mean())

    best = min(PENALTIES, key=error)
    weights: Tensor = vectors @ (projected / (variances + best * mean)[:, None])
    return weights


def psnr(estimates: Tensor, images: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, the mean over the images; values in 0 to 1."""
    errors = (estimates - images).square().flatten(1).mean(1).clamp(min=1e-10)
    return float((-10 * errors.log10()).mean())


def ssim(estimates: Tensor, images: Tensor) -> float:
    """Mean structural similarity, a Gaussian window of 11 pixels (Wang et al., 2004); values in 0 to 1."""
    position = torch.arange(11.0) - 5
    line = torch.exp(-position.square() / (2 * 1.5**2))
    window = torch.outer(line, line) / line.sum() ** 2
    channels = images.shape[1]
    kernel = window.expand(channels, 1, 11, 11)

    def local_mean(values: Tensor) -> Tensor:
        return F.conv2d(values, kernel, groups=channels)

    mean_e, mean_i = local_mean(estimates), local_mean(images)
    var_e = local_mean(estimates.square()) - mean_e.square()
    var_i = local_mean(images.square()) - mean_i.square()
    covariance = local_mean(estimates * images) - mean_e * mean_i
    steady = (0.01**2, 0.03**2)
    similarity = (2 * mean_e * mean_i + steady[0]) * (2 * covariance + steady[1])
    similarity /= (mean_e.square() + mean_i.square() + steady[0]) * (var_e + var_i + steady[1])
    return float(similarity.mean())
