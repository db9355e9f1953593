# SPDX-License-Identifier: Apache-2.0
"""Fits an image to the network's input, in the same way for training, evaluation and inference."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from splitee.errors import ConfigError, DataError
from splitee.protocol.fields import Fit

Pixels = npt.NDArray[np.uint8]
Shape = tuple[int, int, int]  # channels, height, width
Size = tuple[int, int]  # width, height
T = TypeVar("T")

PHOTO_SHAPE: Shape = (3, 96, 96)  # the default input for photographs
ORIENTATION = 0x0112  # in EXIF
TURNED = range(5, 9)  # its values for an image that lies on its side
GREY = 127  # of the margins that `pad` leaves
LEAST_SIDE = 2  # pixels of an image, or of its region


def format_shape(sizes: Sequence[int]) -> str:
    """A shape as people write it: `3x96x96`."""
    return "x".join(map(str, sizes))


@dataclass(frozen=True)
class Region:
    """A part of an upright image: its left upper corner and its size, in the image's pixels."""

    x: int
    y: int
    width: int
    height: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """A region written X,Y,W,H, such as 320,0,640,480. Raises ConfigError."""
        numbers = [int(part) for part in text.split(",") if re.fullmatch(r"\s*[0-9]{1,6}\s*", part)]
        if len(numbers) != 4 or text.count(",") != 3 or min(numbers[2:]) < LEAST_SIDE:
            raise ConfigError(
                f"expected a region as X,Y,W,H in pixels, at least {LEAST_SIDE} wide and high, such as "
                f"320,0,640,480; got {text!r}"
            )
        return cls(*numbers)

    def __str__(self) -> str:
        return f"{self.x},{self.y},{self.width},{self.height}"


@dataclass(frozen=True)
class Preparation:
    """The preparation of images; it is called with one image.

    Attributes:
        shape: of what comes out; 1 channel (grey) or 3 (RGB).
        fit: how the image is fitted to it. `crop` keeps the middle, `pad` the whole between grey margins,
            `stretch` the whole without its aspect ratio.
        region: the part that is cut out of the upright image first; None: all of it.
    """

    shape: Shape
    fit: Fit = "crop"
    region: Region | None = None

    def __post_init__(self) -> None:
        """Raises DataError: images do not have so many channels."""
        if self.shape[0] not in {1, 3}:
            raise DataError(f"images have 1 channel (grey) or 3 (RGB); the network needs {self.shape[0]}")

    def __call__(self, image: Image.Image) -> Pixels:
        """A Pillow image, which may be changed in place, as uint8 (C, H, W).

        EXIF orientation is applied, 16-bit grey keeps its upper 8 bits, what is transparent becomes white,
        and pixels are interpolated bilinearly.

        Raises:
            DataError: the image is too small, or does not hold the region.
        """
        whole = image.size
        reduced = _reduce(image, self)
        before = image.size
        ImageOps.exif_transpose(image, in_place=True)
        upright = whole if image.size == before else whole[::-1]
        image = _cut_out(image, upright, self.region, reduced)
        if image.mode.startswith("I"):  # 16-bit grey, for which convert() clips instead of scaling
            image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
        channels, height, width = self.shape
        mode = "L" if channels == 1 else "RGB"
        if image.has_transparency_data:
            fitted = _scaled(_converted(image, "RGBA"), self)
            white = Image.new("RGBA", fitted.size, "white")
            fitted = Image.alpha_composite(white, fitted).convert(mode)
        else:
            fitted = _scaled(_converted(image, mode), self)
        if fitted.size != (width, height):
            fitted = _with_margins(fitted, (width, height))
        pixels = np.asarray(fitted, dtype=np.uint8).reshape(height, width, channels)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def enlargement(self, size: Size) -> float:
        """Factor by which the number of pixels of an upright image of `size` grows; below 1: it shrinks."""
        width, height = size if self.region is None else (self.region.width, self.region.height)
        across, down = self.shape[2] / width, self.shape[1] / height
        if self.fit == "stretch":
            return across * down
        return (max(across, down) if self.fit == "crop" else min(across, down)) ** 2


def from_array(array: Pixels, convert: Callable[[Image.Image], T]) -> T:
    """The result of `convert` for a decoded image, uint8 (H, W) or (H, W, C), C in 1..4. Raises DataError."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    layout_known = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in {2, 3, 4})
    if array.dtype != np.uint8 or not layout_known or array.size == 0:
        raise DataError(
            f"expected an image as uint8 (H, W) or (H, W, channels), got {array.dtype} {array.shape}"
        )
    return convert(Image.fromarray(array))


def upright_size(image: Image.Image) -> Size:
    """Width and height of the upright image, from its header alone."""
    # A TIFF's size is that already; a PNG, which hardly ever has an orientation, would be decoded for it.
    turned = image.format not in {"TIFF", "PNG"} and image.getexif().get(ORIENTATION, 1) in TURNED
    return (image.height, image.width) if turned else image.size


def _reduce(image: Image.Image, preparation: Preparation) -> int:
    """Lets a JPEG be decoded at 1/2 to 1/8 of its size, if that leaves at least twice the wanted size.

    Returns the divisor, 2 to 8; 1: it is decoded at its full size.
    """
    region = preparation.region
    kept = min(image.size if region is None else (region.width, region.height))
    most = kept // (2 * max(preparation.shape[1:]))
    factor = max((factor for factor in (2, 4, 8) if factor <= most), default=1)
    if factor == 1 or min(image.size) < factor:
        return 1
    drafted = image.draft(None, (image.width // factor, image.height // factor))
    return factor if drafted is not None else 1


def _cut_out(image: Image.Image, upright: Size, region: Region | None, reduced: int) -> Image.Image:
    """The region of an image that was `upright` before it was decoded at 1/`reduced` of its size."""
    width, height = upright
    if min(upright) < LEAST_SIDE:
        raise DataError(f"{width} x {height} pixels: too few for an image")
    if region is None:
        return image
    right, lower = region.x + region.width, region.y + region.height
    if right > width or lower > height:
        raise DataError(f"{width} x {height} pixels: too few for the region {region} (X,Y,W,H)")
    box = region.x // reduced, region.y // reduced, -(-right // reduced), -(-lower // reduced)
    return image.crop(box)


def _scaled(image: Image.Image, preparation: Preparation) -> Image.Image:
    """The image, scaled to fill the network's input, or for `pad` one of its two sides."""
    _, height, width = preparation.shape
    if preparation.fit == "crop":
        return ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    if preparation.fit == "pad":
        scale = min(width / image.width, height / image.height)
        width, height = (max(round(side * scale), 1) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _with_margins(image: Image.Image, size: Size) -> Image.Image:
    """The image in the middle of a grey one of `size`."""
    whole = Image.new(image.mode, size, (GREY,) * len(image.getbands()))
    whole.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return whole


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """Converts to a mode, without the copy that Pillow makes if the image has it already."""
    return image if image.mode == mode else image.convert(mode)
