# SPDX-License-Identifier: Apache-2.0
"""Whether an image differs from the last classified one, decided before any model runs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from splitee.samples.fitting import Pixels

CELLS = 32  # a side, of the grid by which images are compared


class ChangeFilter:
    """Passes an image if its difference from the last passed one exceeds a share of the full scale.

    The difference is the mean over a grid of CELLS x CELLS of |g - g'| / 255, where g is a cell's mean grey:
    frame differencing (R. C. Gonzalez and R. E. Woods, Digital Image Processing, 4th ed., 10.6) with a mean
    instead of a mask. A cell's mean has less noise than a pixel, by the root of the number of its values.
    """

    def __init__(self, share: float) -> None:
        """`share`: in 0..1."""
        self._share = share
        self._last: npt.NDArray[np.float32] | None = None

    def passes(self, pixels: Pixels) -> bool:
        """Whether `pixels`, uint8 (C, H, W), differ; the first image always passes."""
        cells = grid(pixels)
        if self._last is not None and float(np.abs(cells - self._last).mean()) / 255 <= self._share:
            return False
        self._last = cells
        return True


def grid(pixels: Pixels) -> npt.NDArray[np.float32]:
    """Mean grey of each cell, float32 (CELLS, CELLS), of an image uint8 (C, H, W)."""
    grey = Image.fromarray(pixels.mean(axis=0, dtype=np.float32))
    return np.asarray(grey.resize((CELLS, CELLS), Image.Resampling.BOX))
