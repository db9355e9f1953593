"""Images as the network sees them: decoding, fitting, normalising, the same in training and inference."""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from splitee.errors import DataError

Pixels = npt.NDArray[np.uint8]
Shape = tuple[int, int, int]

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
# An allow-list: some of Pillow's other readers start programs (EPS) or are little tested.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# Decoded, an image takes up to 4 bytes a pixel, and as much again where its colours are converted.
MAX_PIXELS = 50_000_000  # below the size at which Pillow itself warns
PngImagePlugin.MAX_TEXT_MEMORY = 1 << 20  # bytes that the texts in a PNG may unpack to, all together


class UnreadableImage(DataError):
    """An image that cannot be decoded; `name` says which, so that the caller may skip it."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: expected an image (JPEG, PNG, WebP, TIFF, BMP, GIF or PPM), got {reason}")
        self.name = name


def load_image(source: Path | bytes, shape: Shape, *, name: str | None = None) -> Pixels:
    """An image's file or encoded bytes as uint8 (C, H, W): upright, cropped to the middle, bilinear.

    C is 1 (grey) or 3 (RGB). Only the first frame of an animation is decoded. Raises UnreadableImage for what
    is missing, no regular file, truncated, no image, or larger than MAX_PIXELS; it is called `name` there, or
    by its path.
    """
    _check_channels(shape)
    name = name or (str(source) if isinstance(source, Path) else f"{len(source)} bytes")
    try:
        with _opened(name, source) as file, _read_header(file) as image:
            if image.width * image.height > MAX_PIXELS:
                reason = f"{image.width} x {image.height} pixels, more than {MAX_PIXELS}"
                raise UnreadableImage(name, reason)
            # A JPEG is decoded at 1/2 to 1/8 of its size where at least twice the wanted size is left.
            image.draft(None, (2 * max(shape[1:]),) * 2)
            return fit_image(image, shape)
    except UnreadableImage:
        raise
    except Exception as error:  # on hostile bytes Pillow's readers raise anything, even SyntaxError
        raise UnreadableImage(name, _reason(error)) from None


def fit_array(array: Pixels, shape: Shape) -> Pixels:
    """A decoded image, uint8 (H, W) or (H, W, C) with C in 1..4, as uint8 of `shape` (C, H, W)."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    layout_known = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in {2, 3, 4})
    if array.dtype != np.uint8 or not layout_known or array.size == 0:
        raise DataError(
            f"expected an image as uint8 (H, W) or (H, W, channels), got {array.dtype} {array.shape}"
        )
    return fit_image(Image.fromarray(array), shape)


def fit_image(image: Image.Image, shape: Shape) -> Pixels:
    """A Pillow image, which may be changed in place, as uint8 of `shape` (C, H, W).

    EXIF orientation is applied, 16-bit grey keeps its upper 8 bits, and what is transparent becomes white.
    """
    channels, height, width = shape
    _check_channels(shape)
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):  # 16-bit grey, for which convert() clips instead of scaling
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    mode = "L" if channels == 1 else "RGB"
    if image.has_transparency_data:
        fitted = ImageOps.fit(_converted(image, "RGBA"), (width, height), Image.Resampling.BILINEAR)
        white = Image.new("RGBA", fitted.size, "white")
        fitted = Image.alpha_composite(white, fitted).convert(mode)
    else:
        fitted = ImageOps.fit(_converted(image, mode), (width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(fitted, dtype=np.uint8).reshape(height, width, channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def normalize(images: Pixels, mean: Sequence[float], std: Sequence[float]) -> npt.NDArray[np.float32]:
    """(x / 255 - mean) / std per channel: uint8 (N, C, H, W) -> float32 (N, C, H, W)."""
    scale = 1 / (255 * np.asarray(std, dtype=np.float64))
    shift = -np.asarray(mean, dtype=np.float64) / np.asarray(std, dtype=np.float64)
    normalized: npt.NDArray[np.float32] = np.multiply(images, _per_channel(scale), dtype=np.float32)
    normalized += _per_channel(shift)
    return normalized


def _per_channel(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    return values.astype(np.float32).reshape(-1, 1, 1)


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """Without the copy that Pillow makes of an image that has the mode."""
    return image if image.mode == mode else image.convert(mode)


def _opened(name: str, source: Path | bytes) -> BinaryIO:
    """What the image is read from: no FIFO, which would wait for a writer, and no device."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    _check_regular(name, source.stat())
    file = os.fdopen(os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY), "rb")
    try:
        _check_regular(name, os.fstat(file.fileno()))  # another file may have taken its place
    except UnreadableImage:
        file.close()
        raise
    return file


def _check_regular(name: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableImage(name, "no regular file")


def _read_header(file: BinaryIO) -> Image.Image:
    with warnings.catch_warnings():  # the size is checked by load_image, with an error
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(file, formats=_FORMATS)


def _check_channels(shape: Shape) -> None:
    if shape[0] not in {1, 3}:
        raise DataError(f"images have 1 channel (grey) or 3 (RGB); the network asks for {shape[0]}")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "something else"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
