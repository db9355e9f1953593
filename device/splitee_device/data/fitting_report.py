# SPDX-License-Identifier: Apache-2.0
"""Logs once how a device's images are fitted: from which size to the network's input."""

from __future__ import annotations

import logging
from collections import Counter

import numpy as np

from splitee.cli.input_options import SMALLEST_SIDE
from splitee.samples.fitting import Preparation, Size, format_shape, upright_size
from splitee.samples.images import UnreadableImage
from splitee_device.data.base import Indices, Split

LOOKED_AT = 200  # images whose headers are read
ENLARGED = 1.5  # factor in pixels from which on a smaller input would lose nothing
WORDS = {"crop": "cropped to", "pad": "set between grey margins in", "stretch": "stretched to"}

log = logging.getLogger(__name__)


def report_fitting(spec: str, split: Split, indices: Indices, preparation: Preparation) -> None:
    """Log the commonest size among some of the images at `indices`, and how it is fitted.

    It is a warning if they are enlarged: a smaller input would cost less, and show as much.
    """
    sizes = _sizes(split, indices)
    if not sizes:
        return
    (commonest, count), *others = sizes.most_common()
    _, height, width = preparation.shape
    log.info(
        "%s: images of %d x %d (%d of %d checked%s) are %s %d x %d",
        spec, *commonest, count, sizes.total(), _range(others), _words(commonest, preparation), width, height,
    )  # fmt: skip
    enlargement = preparation.enlargement(commonest)
    if enlargement >= ENLARGED:
        log.warning(
            "%s: %d x %d is enlarged to %d x %d: the server's --input %s would cost 1/%.0f",
            spec, *_seen(commonest, preparation), width, height, _smaller(preparation, enlargement),
            enlargement,
        )  # fmt: skip


def _sizes(split: Split, indices: Indices) -> Counter[Size]:
    """The count of each size among LOOKED_AT of the images, evenly spread."""
    some = np.sort(indices)
    if len(some) > LOOKED_AT:
        some = some[np.arange(LOOKED_AT) * len(some) // LOOKED_AT]
    found: Counter[Size] = Counter()
    for image in split.images(some):
        try:
            found[image(upright_size)] += 1
        except UnreadableImage:  # logged when it is decoded
            continue
    return found


def _range(others: list[tuple[Size, int]]) -> str:
    """The smallest and the largest of the less common sizes, by number of pixels."""
    if not others:
        return ""
    ordered = sorted((size for size, _ in others), key=lambda size: (size[0] * size[1], size))
    first, last = (f"{width} x {height}" for width, height in (ordered[0], ordered[-1]))
    return f", others {first}" + (f" to {last}" if len(ordered) > 1 else "")


def _seen(size: Size, preparation: Preparation) -> Size:
    """The size of what the network sees of an image of `size`: all of it, or the region."""
    region = preparation.region
    return size if region is None else (region.width, region.height)


def _words(size: Size, preparation: Preparation) -> str:
    region = preparation.region
    cut_out = "" if region is None else f"cut to the region {region}, then "
    width, height = _seen(size, preparation)
    _, rows, columns = preparation.shape
    if (width, height) == (columns, rows):
        return f"{cut_out}taken as they are, at"
    return cut_out + ("scaled to" if width * rows == height * columns else WORDS[preparation.fit])


def _smaller(preparation: Preparation, enlargement: float) -> str:
    """The input at which the images would keep their size."""
    channels, height, width = preparation.shape
    scale = enlargement**0.5
    sides = (max(round(side / scale), SMALLEST_SIDE) for side in (height, width))
    return format_shape((channels, *sides))
