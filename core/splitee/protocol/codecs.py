# SPDX-License-Identifier: Apache-2.0
"""Codecs: features as bytes and back; fp32, fp16 or int8, with lossless compression on top (+zstd)."""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cache
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt
import zstandard

from splitee.errors import ConfigError, Diverged, MalformedMessage
from splitee.protocol.encoding import MAX_PACKED

MAX_AXES = 6
BLOCK = 1 << 15  # values that are processed at once; 128 KiB as float32
LARGEST = 65_504.0  # magnitude of a value on the wire: the largest of float16
ROUNDED = 1.0001  # for int8: a channel's maximum is its minimum plus 255 rounded steps

Array = npt.NDArray[np.float32]
Dimension = Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]


class EncodedTensor(msgspec.Struct, frozen=True):
    """A tensor on the wire: `shape` with the batch first, `data` as its codec lays it out.

    Attributes:
        codec: `fp32`, `fp16` or `int8`, each with or without `+zstd`.
        shape: shape of the tensor, the batch first.
        data: the values, laid out as the codec says.
    """

    codec: Annotated[str, msgspec.Meta(max_length=16)]
    shape: Annotated[list[Dimension], msgspec.Meta(min_length=1, max_length=MAX_AXES)]
    data: bytes


class Codec(ABC):
    """Turns float32 arrays into bytes and back.

    The lossy codecs work in blocks that fit a core's cache: over a whole batch the same NumPy operations
    would each read and write main memory.
    """

    @abstractmethod
    def encode(self, array: Array, largest: float = LARGEST) -> bytes:
        """`array`: contiguous and not empty.

        Raises:
            Diverged: a value is not finite, or beyond +-`largest` where the codec does not clip.
        """

    @abstractmethod
    def decode(self, data: bytes | memoryview, shape: tuple[int, ...], largest: float = LARGEST) -> Array:
        """`data`: `size(shape)` bytes before compression.

        Raises:
            MalformedMessage: a value is not finite, or beyond +-`largest`.
        """

    @abstractmethod
    def size(self, shape: tuple[int, ...]) -> int:
        """Bytes before compression."""


class Fp32(Codec):
    def encode(self, array: Array, largest: float = LARGEST) -> bytes:
        if not _within(array, largest):
            raise _diverged(largest)
        return array.tobytes()

    def decode(self, data: bytes | memoryview, shape: tuple[int, ...], largest: float = LARGEST) -> Array:
        array = np.frombuffer(data, dtype=np.float32).reshape(shape)
        if not _within(array, largest):
            raise _out_of_bounds(largest)
        return array

    def size(self, shape: tuple[int, ...]) -> int:
        return 4 * math.prod(shape)


class Fp16(Codec):
    """IEEE half precision, rounded to nearest with ties to even; values beyond its range are clipped."""

    LIMIT = float(np.finfo(np.float16).max)

    def encode(self, array: Array, largest: float = LARGEST) -> bytes:
        if not _within(array, self.LIMIT):
            if not _within(array, float(np.finfo(np.float32).max)):
                raise _diverged(largest)
            array = np.clip(array, -self.LIMIT, self.LIMIT)
        return _as_half(array).tobytes()

    def decode(self, data: bytes | memoryview, shape: tuple[int, ...], largest: float = LARGEST) -> Array:
        # Shifted by 13 bits, a half's exponent and fraction are a float32's except for a factor of 2^112. In
        # this way even a NumPy that was not built for this CPU converts many values at once.
        half = np.frombuffer(data, dtype=np.int16)
        flat = np.empty(half.size, np.float32)
        for start in range(0, half.size, BLOCK):
            block = slice(start, start + BLOCK)
            bits = flat[block].view(np.int32)
            bits[:] = half[block]  # the sign bit fills the upper half
            bits <<= 13
            bits &= ~0x7000_0000
            flat[block] *= np.float32(2**112)
        if not _within(flat, min(largest, self.LIMIT)):  # float16's infinities and NaN are beyond LIMIT here
            raise _out_of_bounds(largest)
        return flat.reshape(shape)

    def size(self, shape: tuple[int, ...]) -> int:
        return 2 * math.prod(shape)


class Int8(Codec):
    """Affine, per channel (axis 1): x is restored within half a step, (max - min) / 510, of its channel.

    Layout: C float32 minima, C float32 steps, then one byte a value. A channel whose step would be a
    subnormal float32 is restored as its minimum.
    """

    def encode(self, array: Array, largest: float = LARGEST) -> bytes:
        channels = _channels(array.shape)
        flat = array.reshape(len(array), -1)  # (B, C x rest)
        with np.errstate(over="ignore", invalid="ignore"):
            low = flat.min(axis=0).reshape(channels, -1).min(axis=1)
            high = flat.max(axis=0).reshape(channels, -1).max(axis=1)
            step = (high - low) / np.float32(255)
        if not (_within(low, largest) and _within(high, largest)):
            raise _diverged(largest)
        inverse = np.divide(1, step, out=np.zeros_like(step), where=step >= np.finfo(np.float32).tiny)
        rest = flat.shape[1] // channels
        lows, inverses = np.repeat(low, rest), np.repeat(inverse, rest)
        shifted = bool(low.any())  # False after a ReLU
        levels = np.empty(flat.shape, np.uint8)
        scratch = np.empty(min(flat.size, BLOCK), np.float32)
        for rows, columns in _tiles(flat.shape):
            tile = flat[rows, columns]
            scaled = scratch[: tile.size].reshape(tile.shape)
            if shifted:
                tile = np.subtract(tile, lows[columns], out=scaled)
            np.multiply(tile, inverses[columns], out=scaled)
            levels[rows, columns] = np.rint(scaled, out=scaled)
        return b"".join((low.data, step.data, levels.data))

    def decode(self, data: bytes | memoryview, shape: tuple[int, ...], largest: float = LARGEST) -> Array:
        channels = _channels(shape)
        low, step = np.frombuffer(data, dtype=np.float32, count=2 * channels).reshape(2, channels)
        with np.errstate(over="ignore", invalid="ignore"):
            high = low + 255 * step
        if not (_within(low, largest) and _within(high, largest * ROUNDED)):
            raise _out_of_bounds(largest)
        levels = np.frombuffer(data, dtype=np.uint8, offset=8 * channels).reshape(shape[0], -1)
        rest = levels.shape[1] // channels
        lows, steps = np.repeat(low, rest), np.repeat(step, rest)
        restored = np.empty(levels.shape, np.float32)
        for rows, columns in _tiles(levels.shape):
            tile = restored[rows, columns]
            np.multiply(levels[rows, columns], steps[columns], out=tile)
            tile += lows[columns]
        return restored.reshape(shape)

    def size(self, shape: tuple[int, ...]) -> int:
        return 8 * _channels(shape) + math.prod(shape)


class Zstd(Codec):
    """Lossless compression of another codec's bytes; decompression stops at that codec's size.

    Features gain from entropy coding rather than from matches, so the match finder is kept small and cheap.
    """

    PARAMETERS = zstandard.ZstdCompressionParameters.from_level(1, min_match=7, hash_log=8)

    def __init__(self, inner: Codec) -> None:
        self._inner = inner

    def encode(self, array: Array, largest: float = LARGEST) -> bytes:
        compressor = zstandard.ZstdCompressor(compression_params=self.PARAMETERS)
        return compressor.compress(self._inner.encode(array, largest))

    def decode(self, data: bytes | memoryview, shape: tuple[int, ...], largest: float = LARGEST) -> Array:
        size = self._inner.size(shape)
        try:
            announced = zstandard.frame_content_size(data)
            if announced != size:
                raise MalformedMessage(f"compressed tensor of {announced} B, its shape {shape} needs {size}")
            raw = zstandard.ZstdDecompressor().decompress(data, max_output_size=size, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise MalformedMessage(f"compressed tensor: {error}") from None
        if len(raw) != size:
            raise MalformedMessage(f"compressed tensor holds {len(raw)} B, its shape {shape} needs {size}")
        return self._inner.decode(raw, shape, largest)

    def size(self, shape: tuple[int, ...]) -> int:
        return self._inner.size(shape)


_PLAIN: dict[str, type[Codec]] = {"fp32": Fp32, "fp16": Fp16, "int8": Int8}
CODECS = tuple(_PLAIN) + tuple(f"{name}+zstd" for name in _PLAIN)
DEFAULT = "fp16"
AUTO = "auto"  # as a run's codec: each device chooses its own


@cache
def codec(name: str) -> Codec:
    """The codec called `name`, one of CODECS.

    Raises:
        MalformedMessage: no codec has that name.
    """
    plain, plus, compression = name.partition("+")
    if name not in CODECS:
        raise MalformedMessage(f"unknown codec {name!r}; known: {', '.join(CODECS)}")
    inner = _PLAIN[plain]()
    return Zstd(inner) if plus and compression else inner


def encode_tensor(name: str, array: Array, largest: float = LARGEST) -> EncodedTensor:
    """Encode `array` (B, ...), float32 with any memory layout.

    Raises:
        ConfigError: it is larger than MAX_PACKED as float32.
        Diverged: a value is not finite; or beyond +-`largest`, where the codec does not clip.
        ValueError: it is empty, has no batch axis or more than 6 axes.
    """
    if not 1 <= array.ndim <= MAX_AXES or not array.size:
        raise ValueError(f"expected 1 to {MAX_AXES} axes and none empty, got shape {array.shape}")
    if 4 * array.size > MAX_PACKED:
        raise ConfigError(
            f"a tensor of shape {array.shape} takes {4 * array.size} bytes, at most {MAX_PACKED} travel: "
            "choose a smaller batch size"
        )
    contiguous = np.ascontiguousarray(array, dtype=np.float32)
    return EncodedTensor(name, list(array.shape), codec(name).encode(contiguous, largest))


def decode_tensor(
    tensor: EncodedTensor, expected: tuple[int, ...] | None = None, largest: float = LARGEST
) -> Array:
    """The float32 array (B, ...) of an encoded tensor; it may be a read-only view of the message.

    Args:
        expected: the required shape, without the batch.

    Raises:
        MalformedMessage: shape, codec and data do not fit each other, or a value is not finite or beyond
            +-`largest`.
    """
    shape = tuple(tensor.shape)
    if expected is not None and shape[1:] != expected:
        raise MalformedMessage(f"tensor of shape {shape[1:]} a sample, expected {expected}")
    used = codec(tensor.codec)
    needed = 4 * math.prod(shape)
    if needed > MAX_PACKED:
        raise MalformedMessage(
            f"tensor of shape {shape} takes {needed} bytes, at most {MAX_PACKED} are taken"
        )
    size = used.size(shape)
    if not isinstance(used, Zstd) and len(tensor.data) != size:
        raise MalformedMessage(f"tensor holds {len(tensor.data)} bytes, its shape {shape} needs {size}")
    return used.decode(tensor.data, shape, largest)


def _channels(shape: tuple[int, ...]) -> int:
    return shape[1] if len(shape) > 1 else 1


def _as_half(array: Array) -> npt.NDArray[np.float16]:
    """`array` as float16; torch, if it is loaded, gives the same bits in a tenth of NumPy's time."""
    torch = sys.modules.get("torch")
    if torch is None:
        return array.astype(np.float16)
    half: npt.NDArray[np.float16] = torch.from_numpy(array).half().numpy()
    return half


def _out_of_bounds(largest: float) -> MalformedMessage:
    return MalformedMessage(f"tensor holds values that are not finite, or beyond +-{largest:g}")


def _diverged(largest: float) -> Diverged:
    return Diverged(
        f"a tensor to send holds values that are not finite, or beyond +-{largest:g}: training diverged, "
        "lower the learning rate"
    )


def _within(array: Array, largest: float) -> bool:
    """Whether all values are finite and within +-`largest`."""
    return bool(-largest <= array.min() and array.max() <= largest)


def _tiles(shape: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """Rows and columns that cut a matrix into tiles of at most BLOCK values."""
    rows, columns = shape
    width = min(columns, BLOCK)
    height = BLOCK // width
    for left in range(0, columns, width):
        for top in range(0, rows, height):
            yield slice(top, top + height), slice(left, left + width)
