# SPDX-License-Identifier: Apache-2.0
"""Images from files and bytes: decoded with bounds, and normalised, the same in training and inference."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin, UnidentifiedImageError, features

from splitee.errors import DataError
from splitee.samples.fitting import Pixels, T

_HAS_AVIF = "avif" in features.modules and features.check("avif")
_HAS_HEIF = find_spec("pillow_heif") is not None

PIECE = 1 << 20  # bytes that are read of a file at once
IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
    | ({".avif"} if _HAS_AVIF else set())
    | ({".heic", ".heif"} if _HAS_HEIF else set())
)
# An allow-list: some of Pillow's other readers start programs (EPS) or are little tested.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP", *(("AVIF",) if _HAS_AVIF else ()))
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"})
# Decoded, an image takes up to 4 bytes a pixel, and as much again where its colours are converted.
MAX_PIXELS = 50_000_000  # below the size at which Pillow itself warns
MAX_ENCODED = 32 << 20  # bytes of an image's file that is kept as it is
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # load_image checks the size, with an error
PngImagePlugin.MAX_TEXT_MEMORY = 1 << 20  # bytes that the texts in a PNG may unpack to, all together


class UnreadableImage(DataError):
    """An image that cannot be decoded; `name` says which, so that the caller may skip it."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(
            f"{name}: expected an image (JPEG, PNG, WebP, AVIF, TIFF, BMP, GIF or PPM), got {reason}"
        )
        self.name = name


def is_image(path: Path) -> bool:
    """Whether the file begins as an image that can be decoded."""
    try:
        with _opened(str(path), path) as file, _read_header(str(path), file):
            return True
    except Exception:  # on hostile bytes Pillow's readers raise anything
        return False


def load_image(source: Path | bytes, convert: Callable[[Image.Image], T], *, name: str | None = None) -> T:
    """The result of `convert` for an image's file or encoded bytes. For a `Preparation`: uint8 (C, H, W).

    Of an animation it uses the first frame. Raises UnreadableImage: it is missing, no regular file,
    truncated, no image, larger than MAX_PIXELS, or not fit for `convert`. The error has `name`, or the path.
    """
    name = name or (str(source) if isinstance(source, Path) else f"{len(source)} bytes")
    try:
        with _opened(name, source) as file, _read_header(name, file) as image:
            if image.width * image.height > MAX_PIXELS:
                reason = f"{image.width} x {image.height} pixels, more than {MAX_PIXELS}"
                raise UnreadableImage(name, reason)
            return convert(image)
    except UnreadableImage:
        raise
    except Exception as error:  # on hostile bytes Pillow's readers raise anything, even SyntaxError
        raise UnreadableImage(name, _reason(error)) from None


def read_encoded(source: Path | bytes) -> bytes:
    """The encoded bytes of an image.

    Raises OSError or UnreadableImage: it cannot be read, is no regular file, or larger than MAX_ENCODED.
    """
    name = str(source) if isinstance(source, Path) else f"{len(source)} bytes"
    with _opened(name, source) as file:
        data = file.read(MAX_ENCODED + 1)
    if len(data) > MAX_ENCODED:
        raise UnreadableImage(name, f"more than {MAX_ENCODED >> 20} MiB")
    return data


def content_digest(path: Path) -> str:
    """The identity of an image file, wherever it is: a digest of its bytes, 32 hexadecimal digits.

    Raises OSError or UnreadableImage: it cannot be read, or is no regular file.
    """
    digest = hashlib.blake2b(digest_size=16)
    with _opened(str(path), path) as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def normalize(images: Pixels, mean: Sequence[float], std: Sequence[float]) -> npt.NDArray[np.float32]:
    """(x / 255 - mean) / std per channel: uint8 (N, C, H, W) -> float32 (N, C, H, W)."""
    scale = 1 / (255 * np.asarray(std, dtype=np.float64))
    shift = -np.asarray(mean, dtype=np.float64) / np.asarray(std, dtype=np.float64)
    normalized: npt.NDArray[np.float32] = np.multiply(images, _per_channel(scale), dtype=np.float32)
    normalized += _per_channel(shift)
    return normalized


def _per_channel(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    return values.astype(np.float32).reshape(-1, 1, 1)


def _opened(name: str, source: Path | bytes) -> BinaryIO:
    """Opens the image for reading, but neither a FIFO, which would wait for a writer, nor a device."""
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


def _read_header(name: str, file: BinaryIO) -> Image.Image:
    is_heic = _is_heic(file)
    if is_heic and not _HAS_HEIF:
        raise UnreadableImage(name, "HEIC, which is read where pillow-heif is installed")
    if is_heic:
        import pillow_heif

        pillow_heif.register_heif_opener()
        return Image.open(file, formats=("HEIF",))
    return Image.open(file, formats=_FORMATS)


def _is_heic(file: BinaryIO) -> bool:
    """Decides by the brands at the head of the file, because AVIF and others use the same container."""
    head = file.read(64)
    file.seek(0)
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[place : place + 4] for place in range(16, end, 4))}
    return head[4:8] == b"ftyp" and not brands.isdisjoint(_HEIC_BRANDS)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "something else"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
