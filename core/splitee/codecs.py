"""Codecs: features as bytes and back; fp32, fp16 or int8, with lossless compression on top (+zstd)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import cache
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt
import zstandard

from splitee.errors import MalformedMessage
from splitee.wire import MAX_PACKED

Array = npt.NDArray[np.float32]
Dimension = Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]


class EncodedTensor(msgspec.Struct, frozen=True):
    """A tensor on the wire: `shape` with the batch first, `data` as its codec lays it out."""

    codec: Annotated[str, msgspec.Meta(max_length=16)]
    shape: Annotated[list[Dimension], msgspec.Meta(min_length=1, max_length=6)]
    data: bytes


class Codec(ABC):
    """Turns float32 arrays into bytes; every codec knows the exact size of what it makes, or a bound."""

    @abstractmethod
    def encode(self, array: Array) -> bytes: ...

    @abstractmethod
    def decode(self, data: bytes | memoryview, shape: tuple[int, ...]) -> Array:
        """`data` has `size(shape)` bytes."""

    @abstractmethod
    def size(self, shape: tuple[int, ...]) -> int:
        """Bytes before compression."""


class Fp32(Codec):
    def encode(self, array: Array) -> bytes:
        return np.ascontiguousarray(array, dtype="<f4").tobytes()

    def decode(self, data: bytes | memoryview, shape: tuple[int, ...]) -> Array:
        return np.frombuffer(data, dtype="<f4").reshape(shape)

    def size(self, shape: tuple[int, ...]) -> int:
        return 4 * math.prod(shape)


class Fp16(Codec):
    """Half precision; what exceeds its range is clipped to it, never infinite."""

    LIMIT = float(np.finfo(np.float16).max)

    def encode(self, array: Array) -> bytes:
        with np.errstate(over="ignore"):
            half = array.astype("<f2")
        if np.isinf(half).any():
            half = np.clip(array, -self.LIMIT, self.LIMIT).astype("<f2")
        return half.tobytes()

    def decode(self, data: bytes | memoryview, shape: tuple[int, ...]) -> Array:
        return np.frombuffer(data, dtype="<f2").reshape(shape).astype(np.float32)

    def size(self, shape: tuple[int, ...]) -> int:
        return 2 * math.prod(shape)


class Int8(Codec):
    """Affine, per channel (axis 1): x is restored within half a step, (max - min) / 510, of its channel.

    Layout: C float32 minima, C float32 steps, then one byte a value.
    """

    def encode(self, array: Array) -> bytes:
        planes = array.reshape(array.shape[0], _channels(array.shape), -1)  # (B, C, rest)
        low = planes.min(axis=(0, 2)).astype("<f4")
        step = ((planes.max(axis=(0, 2)) - low) / 255).astype("<f4")
        inverse = np.divide(1, step, out=np.zeros_like(step), where=step > 0)
        scaled = planes - low[:, None]
        scaled *= inverse[:, None]
        np.rint(scaled, out=scaled)
        np.clip(scaled, 0, 255, out=scaled)
        return low.tobytes() + step.tobytes() + scaled.astype(np.uint8).tobytes()

    def decode(self, data: bytes | memoryview, shape: tuple[int, ...]) -> Array:
        channels = _channels(shape)
        low, step = np.frombuffer(data, dtype="<f4", count=2 * channels).reshape(2, channels, 1)
        planes = np.frombuffer(data, dtype=np.uint8, offset=8 * channels).reshape(shape[0], channels, -1)
        restored = planes.astype(np.float32)
        restored *= step
        restored += low
        return restored.reshape(shape)

    def size(self, shape: tuple[int, ...]) -> int:
        return 8 * _channels(shape) + math.prod(shape)


class Zstd(Codec):
    """Lossless compression of another codec's bytes; decompression stops at that codec's size."""

    def __init__(self, inner: Codec, level: int = 1) -> None:
        self._inner = inner
        self._level = level

    def encode(self, array: Array) -> bytes:
        compressed: bytes = zstandard.ZstdCompressor(level=self._level).compress(self._inner.encode(array))
        return compressed

    def decode(self, data: bytes | memoryview, shape: tuple[int, ...]) -> Array:
        size = self._inner.size(shape)
        try:
            if zstandard.frame_content_size(data) != size:
                raise MalformedMessage(f"compressed tensor does not hold the {size} bytes of shape {shape}")
            raw = zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
        except zstandard.ZstdError as error:
            raise MalformedMessage(f"compressed tensor: {error}") from None
        if len(raw) != size:
            raise MalformedMessage(f"compressed tensor holds {len(raw)} B, its shape {shape} needs {size}")
        return self._inner.decode(raw, shape)

    def size(self, shape: tuple[int, ...]) -> int:
        return self._inner.size(shape)


_PLAIN: dict[str, type[Codec]] = {"fp32": Fp32, "fp16": Fp16, "int8": Int8}
CODECS = tuple(_PLAIN) + tuple(f"{name}+zstd" for name in _PLAIN)


@cache
def codec(name: str) -> Codec:
    """The codec called `name`, one of CODECS.

    Raises:
        MalformedMessage: there is none of that name.
    """
    plain, plus, compression = name.partition("+")
    if name not in CODECS:
        raise MalformedMessage(f"unknown codec {name!r}; known: {', '.join(CODECS)}")
    inner = _PLAIN[plain]()
    return Zstd(inner) if plus and compression else inner


def encode_tensor(name: str, array: Array) -> EncodedTensor:
    """`array` (B, ...) float32 as it travels."""
    return EncodedTensor(name, list(array.shape), codec(name).encode(array))


def decode_tensor(tensor: EncodedTensor, expected: tuple[int, ...] | None = None) -> Array:
    """The float32 array (B, ...) of an encoded tensor; it may be a read-only view of the message.

    Args:
        expected: the shape without the batch that it must have.

    Raises:
        MalformedMessage: shape, codec and data do not fit each other, or a value is not finite.
    """
    shape = tuple(tensor.shape)
    if expected is not None and shape[1:] != expected:
        raise MalformedMessage(f"tensor of shape {shape[1:]} a sample, expected {expected}")
    used = codec(tensor.codec)
    size = used.size(shape)
    if size > MAX_PACKED:
        raise MalformedMessage(f"tensor of shape {shape} needs {size} bytes, at most {MAX_PACKED} are taken")
    if not isinstance(used, Zstd) and len(tensor.data) != size:
        raise MalformedMessage(f"tensor holds {len(tensor.data)} bytes, its shape {shape} needs {size}")
    array = used.decode(tensor.data, shape)
    if not np.isfinite(array).all():
        raise MalformedMessage("tensor holds values that are not finite")
    return array


def _channels(shape: tuple[int, ...]) -> int:
    return shape[1] if len(shape) > 1 else 1
