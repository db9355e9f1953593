# SPDX-License-Identifier: Apache-2.0
"""Mean and standard deviation of a device's training images per channel, from a bounded sample."""

from __future__ import annotations

import numpy as np

from splitee_device.data.image_sets import LabelledImages
from splitee_device.data.images import spread_evenly

SAMPLE = 1000  # images
AT_ONCE = 50  # of them in memory, as float64


def channel_statistics(images: LabelledImages) -> dict[str, tuple[float, ...]]:
    """Statistics of at most SAMPLE of `images`, evenly spread over them.

    Returns:
        `pixel_mean` and `pixel_std` as in `Profile`: one value per channel, of pixels in 0..1.
    """
    chosen = spread_evenly(np.arange(len(images)), SAMPLE)
    sums, squares, count = 0.0, 0.0, 0
    for start in range(0, len(chosen), AT_ONCE):
        pixels = images.take(chosen[start : start + AT_ONCE]) / 255  # (B, C, H, W)
        sums = sums + pixels.sum(axis=(0, 2, 3))
        squares = squares + np.square(pixels).sum(axis=(0, 2, 3))
        count += pixels.size // pixels.shape[1]
    mean = np.asarray(sums) / count
    deviation = np.sqrt(np.maximum(np.asarray(squares) / count - np.square(mean), 0.0))
    return {"pixel_mean": tuple(mean.tolist()), "pixel_std": tuple(deviation.tolist())}
