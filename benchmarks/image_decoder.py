# SPDX-License-Identifier: Apache-2.0
"""Estimates images from features by ridge regression, and measures the quality of the estimates."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS = 12_000  # places for the regression, approximately
MOST_INPUTS = 1200  # inputs of a place; those of its 8 neighbours are included if all are at most so many
CHUNK = 100  # images
PENALTIES = (1e-7, 1e-5, 1e-3, 1e-1)  # relative to the mean variance of the inputs
Travels = Callable[[Tensor], Tensor]


class ImageDecoder:
    """Estimates the block of pixels of each place of a feature map, or the whole image from a vector."""

    def __init__(self, features: Tensor, images: Tensor, travels: Travels) -> None:
        """Fit the regression.

        Args:
            features: (N, C, h, w) or (N, C).
            images: (N, 3, H, W), in 0 to 1.
            travels: returns a batch of features as it arrives after encoding and decoding.
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
        """The estimated images (N, 3, H, W), in 0 to 1."""
        estimates = []
        for chunk in torch.split(features, CHUNK):
            rows = (self._inputs(self._travels(chunk)) - self._mean) / self._std
            blocks = (rows @ self._weights + self._target_mean).reshape(
                len(chunk), -1, self._weights.shape[1]
            )
            estimates.append(F.fold(blocks.transpose(1, 2), self._shape[1:], self._block, stride=self._block))
        return torch.cat(estimates).clamp(0, 1)

    def _rows(self, features: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (n, d) and pixels (n, q) of about ROWS random places."""
        generator = torch.Generator().manual_seed(0)
        each = -(-ROWS * CHUNK // len(features))
        inputs, targets = [], []
        for chunk, originals in zip(torch.split(features, CHUNK), torch.split(images, CHUNK), strict=True):
            rows = self._inputs(self._travels(chunk))
            pixels = F.unfold(originals, self._block, stride=self._block).transpose(1, 2).flatten(0, 1)
            chosen = torch.randperm(len(rows), generator=generator)[:each]
            inputs.append(rows[chosen])
            targets.append(pixels[chosen])
        return torch.cat(inputs), torch.cat(targets)

    def _inputs(self, features: Tensor) -> Tensor:
        """The inputs (n, d) of all places of all images."""
        if features.ndim == 2:
            return features
        patches = F.unfold(features, self._size, padding=self._size // 2)
        rows: Tensor = patches.transpose(1, 2).flatten(0, 1)
        return rows


def _ridge(inputs: Tensor, targets: Tensor) -> Tensor:
    """The weights (d, q), fitted on nine tenths of the rows with the penalty that is best on the others."""
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(1))
    tested, fitted = order[: len(order) // 10], order[len(order) // 10 :]
    rows = inputs[fitted]
    variances, vectors = torch.linalg.eigh((rows.T @ rows / len(rows)).double())
    projected = (vectors.T @ (rows.T @ targets[fitted] / len(rows)).double()).float()
    variances, vectors = variances.float().clamp(min=0), vectors.float()
    test_inputs = inputs[tested] @ vectors
    mean = variances.mean()

    def error(penalty: float) -> float:
        estimate = test_inputs @ (projected / (variances + penalty * mean)[:, None])
        return float((estimate - targets[tested]).square().mean())

    best = min(PENALTIES, key=error)
    weights: Tensor = vectors @ (projected / (variances + best * mean)[:, None])
    return weights


def psnr(estimates: Tensor, images: Tensor) -> float:
    """Mean peak signal-to-noise ratio of images (N, 3, H, W) with values in 0 to 1, in dB."""
    errors = (estimates - images).square().flatten(1).mean(1).clamp(min=1e-10)
    return float((-10 * errors.log10()).mean())


def ssim(estimates: Tensor, images: Tensor) -> float:
    """Mean structural similarity, Gaussian window of 11 pixels (Wang et al., 2004), of values in 0 to 1."""
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
    constants = (0.01**2, 0.03**2)
    similarity = (2 * mean_e * mean_i + constants[0]) * (2 * covariance + constants[1])
    similarity /= (mean_e.square() + mean_i.square() + constants[0]) * (var_e + var_i + constants[1])
    return float(similarity.mean())
