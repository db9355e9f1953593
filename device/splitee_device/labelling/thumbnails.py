# SPDX-License-Identifier: Apache-2.0
"""Images for a page: small, upright, complete, and decoded within bounds."""

from __future__ import annotations

import io
from collections import OrderedDict

import numpy as np
from PIL import Image

from splitee.errors import DataError
from splitee.samples.fitting import Preparation
from splitee.samples.images import load_image
from splitee_device.labelling.unlabelled import Unlabelled

SMALL, LARGE = 224, 896  # pixels a side
MOST_KEPT = 400  # small ones, of about 10 KB each
QUALITY = 82  # of JPEG


class Thumbnails:
    """Makes thumbnails on request, and keeps the latest small ones; for one thread at a time."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, bytes] = OrderedDict()

    def small(self, image: Unlabelled) -> bytes:
        """A JPEG of SMALL x SMALL pixels. Raises DataError: it cannot be read."""
        found = self._kept.pop(image.identifier, None) or _jpeg(image, SMALL)
        self._kept[image.identifier] = found
        while len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)
        return found

    def large(self, image: Unlabelled) -> bytes:
        """A JPEG of LARGE x LARGE pixels. Raises DataError: it cannot be read."""
        return _jpeg(image, LARGE)


def _jpeg(image: Unlabelled, side: int) -> bytes:
    if image.path.is_symlink():
        raise DataError(f"{image.name}: a link is not followed")
    pixels = load_image(image.path, Preparation((3, side, side), "pad"))
    encoded = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(encoded, "JPEG", quality=QUALITY)
    return encoded.getvalue()
