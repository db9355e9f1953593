# SPDX-License-Identifier: Apache-2.0
"""Codecs: the error with which each restores values, and the data it refuses."""

from __future__ import annotations

import sys
import tracemalloc

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from tests.core.strategies import arrays

from splitee.errors import ConfigError, Diverged, MalformedMessage
from splitee.protocol.codecs import CODECS, LARGEST, EncodedTensor, codec, decode_tensor, encode_tensor
from splitee.protocol.encoding import MAX_PACKED

Array = npt.NDArray[np.float32]

EVERY_CODEC = pytest.mark.parametrize("name", CODECS)
MODERATE = st.floats(-1e4, 1e4, width=32)
HALF_MAX = 65504.0
HALF_TINY = 2.0**-14  # the least normal float16
FLOAT32_ROUNDING = 2.0**-24


def restored(name: str, array: Array) -> Array:
    return decode_tensor(encode_tensor(name, array), array.shape[1:])


def bound(name: str, array: Array) -> npt.NDArray[np.float64]:
    """The largest error with which each value of `array` may be restored."""
    exact = array.astype(np.float64)
    match name.removesuffix("+zstd"):
        case "fp32":
            return np.zeros_like(exact)
        case "fp16":
            clipped = np.maximum(np.abs(exact) - HALF_MAX, 0)
            return np.maximum(np.abs(exact), HALF_TINY) * 2.0**-11 + clipped
        case "int8":
            axes = tuple(axis for axis in range(array.ndim) if axis != 1)
            low, high = exact.min(axes, keepdims=True), exact.max(axes, keepdims=True)
            rounding = 8 * FLOAT32_ROUNDING * np.maximum(np.abs(low), np.abs(high))
            subnormal = 255 * float(np.finfo(np.float32).tiny)
            return np.broadcast_to((high - low) / 510 * 1.001 + rounding + subnormal, exact.shape)
    raise AssertionError(f"no error bound for {name}")


def assert_within_bound(name: str, array: Array) -> None:
    decoded = restored(name, array)
    assert decoded.dtype == np.float32
    assert decoded.shape == array.shape
    error = np.abs(decoded.astype(np.float64) - array)
    assert (error <= bound(name, array)).all(), error.max()


def activations(*shape: int) -> Array:
    """Values like the features behind a ReLU: channels of different scales, half of the values zero."""
    generator = np.random.default_rng(0)
    values = generator.standard_normal(shape, dtype=np.float32)
    scale = generator.uniform(0.1, 10, (1, shape[1], *[1] * (len(shape) - 2))).astype(np.float32)
    return np.maximum(values, 0) * scale


@EVERY_CODEC
@given(array=arrays())
def test_valid_values_are_restored_within_the_error_bound(name: str, array: Array) -> None:
    assert_within_bound(name, array)


@EVERY_CODEC
@given(array=arrays(MODERATE))
def test_moderate_values_are_restored_within_the_error_bound(name: str, array: Array) -> None:
    assert_within_bound(name, array)


@EVERY_CODEC
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1),
        (1,),
        (7,),
        (3, 5),
        (32, 512),
        (2, 3, 4),
        (1, 64, 8, 8),
        (32, 64, 32, 32),
        (2, 3, 129, 130),
        (1, 1, 40_000),
    ],
    ids=str,
)
def test_tensors_of_all_shapes_are_restored_within_the_error_bound(name: str, shape: tuple[int, ...]) -> None:
    """From one value to more than a block in either direction."""
    array = activations(*shape) if len(shape) > 1 else np.arange(shape[0], dtype=np.float32)
    assert_within_bound(name, array)
    assert_within_bound(name, array - np.float32(1.5))


@EVERY_CODEC
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 60_000.0, 2.0**-20])
def test_constant_tensors_are_restored_exactly(name: str, value: float) -> None:
    array = np.full((4, 3, 5, 5), value, np.float32)
    assert (restored(name, array) == array).all()


@EVERY_CODEC
def test_error_of_a_channel_does_not_depend_on_other_channels(name: str) -> None:
    array = activations(4, 3, 5, 5)
    array[:, 1] = 0
    array[:, 2] *= 1000
    assert_within_bound(name, array)
    assert (restored(name, array)[:, 1] == 0).all()


@EVERY_CODEC
def test_zeros_of_a_relu_stay_zero(name: str) -> None:
    array = activations(4, 3, 5, 5)
    assert (restored(name, array)[array == 0] == 0).all()


@EVERY_CODEC
@pytest.mark.parametrize(
    "view",
    [
        lambda array: array.transpose(0, 3, 1, 2),
        lambda array: array[:, ::2],
        lambda array: array[::-1],
        np.asfortranarray,
        lambda array: np.broadcast_to(array[:1], array.shape),
        lambda array: array.astype(np.float64),
        lambda array: array.astype(">f4"),
    ],
    ids=["transposed", "strided", "reversed", "fortran", "broadcast", "double", "big-endian"],
)
def test_encoding_does_not_depend_on_memory_layout_or_dtype(name: str, view: object) -> None:
    assert callable(view)
    array = view(activations(4, 6, 5, 5))
    plain = np.ascontiguousarray(array, dtype=np.float32)
    assert encode_tensor(name, array) == encode_tensor(name, plain)


@EVERY_CODEC
def test_encoding_does_not_change_its_input(name: str) -> None:
    array = activations(4, 6, 5, 5) - np.float32(1)
    array *= np.float32(1e5 if name.startswith("fp16") else 1e3)  # fp16 clips
    before = array.copy()
    encode_tensor(name, array)
    assert (array == before).all()


@pytest.mark.parametrize("loaded", [True, False], ids=["with torch", "without torch"])
def test_fp16_encoding_equals_numpys_with_and_without_torch(
    loaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch if loaded else None)
    generator = np.random.default_rng(0)
    values = np.ldexp(generator.uniform(-1, 1, 100_000), generator.integers(-26, 16, 100_000))
    halves = np.arange(0x7BFF, dtype=np.uint16).view(np.float16).astype(np.float64)
    ties = (halves[1:] + halves[:-1]) / 2
    array = np.concatenate([values, halves, ties, -ties]).astype(np.float32)
    assert encode_tensor("fp16", array).data == array.astype(np.float16).tobytes()


def test_fp16_restores_every_finite_half_exactly() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = halves[np.isfinite(halves)].astype(np.float32)
    assert (restored("fp16", finite) == finite).all()


@pytest.mark.parametrize("value", [65_504.0, 65_519.0, 65_520.0, 1e9, 3.4e38])
def test_fp16_clips_to_its_range(value: float) -> None:
    array = np.array([[value, -value, 1.0]], np.float32)
    assert restored("fp16", array).tolist() == [[HALF_MAX, -HALF_MAX, 1.0]]


@EVERY_CODEC
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_sender_refuses_values_that_are_not_finite(name: str, value: float) -> None:
    array = np.zeros((2, 3, 4, 4), np.float32)
    array[1, 2, 3, 3] = value
    with pytest.raises(Diverged, match="lower the learning rate"):
        encode_tensor(name, array)


@pytest.mark.parametrize("name", ["fp32", "int8"])
@pytest.mark.parametrize("value", [LARGEST * 1.01, -1e6, 3e38])
def test_values_out_of_bounds_are_refused_by_sender_and_receiver(name: str, value: float) -> None:
    array = np.array([[0.0], [value]], np.float32)
    with pytest.raises(Diverged, match=r"beyond \+-65504: training diverged"):
        encode_tensor(name, array)
    beyond = encode_tensor(name, array, largest=3.4e38)
    with pytest.raises(MalformedMessage, match=r"not finite, or beyond \+-65504"):
        decode_tensor(beyond)
    assert decode_tensor(beyond, largest=3.4e38)[1, 0] == pytest.approx(value)
    encode_tensor(name, np.array([[-LARGEST], [LARGEST]], np.float32))


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (1,) * 7], ids=str)
def test_sender_refuses_invalid_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected 1 to 6 axes"):
        encode_tensor("fp32", np.zeros(shape, np.float32))


def test_sender_refuses_tensor_over_the_size_limit() -> None:
    array = np.broadcast_to(np.float32(0), (2, MAX_PACKED // 4))
    with pytest.raises(ConfigError, match="smaller batch size"):
        encode_tensor("fp16", array)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["fp32", "fp16"])
@pytest.mark.parametrize("compression", ["", "+zstd"])
def test_receiver_refuses_floats_that_are_not_finite(kind: str, compression: str, value: float) -> None:
    data = np.array([1.0, value], "<f4" if kind == "fp32" else "<f2").tobytes()
    with pytest.raises(MalformedMessage, match="not finite"):
        decode_tensor(EncodedTensor(kind + compression, [2], pack(data) if compression else data))


@given(bits=st.integers(0, 0x3FF), negative=st.booleans())
def test_receiver_refuses_every_half_that_is_not_finite(bits: int, negative: bool) -> None:
    half = np.array([negative << 15 | 0x7C00 | bits], "<u2")
    with pytest.raises(MalformedMessage, match="not finite"):
        decode_tensor(EncodedTensor("fp16", [1], half.tobytes()))


@pytest.mark.parametrize(
    ("low", "step"),
    [(np.nan, 1), (np.inf, 1), (0, np.nan), (0, np.inf), (0, 3e38), (-3e38, -3e38), (np.inf, -np.inf)],
)
def test_receiver_refuses_int8_scales_that_are_not_finite(low: float, step: float) -> None:
    scales = np.array([0, low, 1, step], "<f4").tobytes()
    with pytest.raises(MalformedMessage, match="not finite"):
        decode_tensor(EncodedTensor("int8", [1, 2], scales + b"\x01\x01"))


@EVERY_CODEC
@given(data=st.binary(max_size=64), shape=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_hostile_data_is_refused_or_decoded_to_finite_values(
    name: str, data: bytes, shape: list[int]
) -> None:
    size = codec(name).size(tuple(shape))
    for candidate in (data, data.ljust(size, b"\x7f")[:size], pack(data.ljust(size, b"\xff")[:size])):
        try:
            array = decode_tensor(EncodedTensor(name, shape, candidate))
        except MalformedMessage as error:
            assert "\n" not in str(error)
        else:
            assert array.shape == tuple(shape)
            assert np.isfinite(array).all()


@EVERY_CODEC
@pytest.mark.parametrize("change", [-1, 1, 4])
def test_data_of_another_size_is_refused(name: str, change: int) -> None:
    tensor = encode_tensor(name, activations(2, 3, 4, 4))
    data = tensor.data[:change] if change < 0 else tensor.data + bytes(change)
    with pytest.raises(MalformedMessage):
        decode_tensor(msgspec.structs.replace(tensor, data=data))


@EVERY_CODEC
@pytest.mark.parametrize("shape", [[2, 3, 4, 5], [2, 3, 4], [1], [96, 1], [2, 4, 4, 4]], ids=str)
def test_tensor_that_claims_another_shape_is_refused(name: str, shape: list[int]) -> None:
    tensor = msgspec.structs.replace(encode_tensor(name, activations(2, 3, 4, 4)), shape=shape)
    with pytest.raises(MalformedMessage):
        decode_tensor(tensor, (3, 4, 4))


@EVERY_CODEC
def test_shape_over_the_size_limit_is_refused_before_allocation(name: str) -> None:
    tracemalloc.start()
    try:
        for shape in ([1 << 24] * 6, [MAX_PACKED // 4 + 1], [2, MAX_PACKED // 4]):
            with pytest.raises(MalformedMessage, match=str(MAX_PACKED)):
                decode_tensor(EncodedTensor(name, shape, b""))
        assert tracemalloc.get_traced_memory()[1] < 1 << 16
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", [name for name in CODECS if name.endswith("+zstd")])
@pytest.mark.parametrize("announced", [True, False])
def test_zstd_frame_of_more_or_less_data_than_its_shape_is_refused(name: str, announced: bool) -> None:
    size = codec(name).size((1, 2, 2))
    bomb = pack(bytes(64 << 20), announced)
    assert len(bomb) < 1 << 13
    assert "tensor" in refusal(EncodedTensor(name, [1, 2, 2], bomb), memory=1 << 16)
    short = pack(bytes(size - 1), announced)
    assert "tensor" in refusal(EncodedTensor(name, [1, 2, 2], short), memory=1 << 16)


def test_zstd_frame_with_a_false_content_size_is_refused() -> None:
    """The frame announces the size of the shape, and holds more or less data."""
    valid = pack(bytes(64))
    assert valid[4:6] == bytes([0x20, 64])  # single segment, one byte of content size
    for false_size in (16, 128):
        frame = valid[:5] + bytes([false_size]) + valid[6:]
        refusal(EncodedTensor("fp32+zstd", [false_size // 4], frame), memory=1 << 16)


def test_bytes_after_a_zstd_frame_are_refused() -> None:
    refusal(EncodedTensor("fp32+zstd", [4], pack(bytes(16)) + b"more"), memory=1 << 16)


def test_unexpected_sample_shape_is_refused_with_both_shapes() -> None:
    tensor = encode_tensor("fp32", activations(2, 3, 4, 4))
    assert decode_tensor(tensor, (3, 4, 4)).shape == (2, 3, 4, 4)
    with pytest.raises(MalformedMessage, match=r"\(3, 4, 4\) a sample, expected \(3, 4, 5\)"):
        decode_tensor(tensor, (3, 4, 5))


def test_registry_has_every_codec_and_refuses_other_names() -> None:
    assert set(CODECS) == {"fp32", "fp16", "int8", "fp32+zstd", "fp16+zstd", "int8+zstd"}
    for name in ("", "+zstd", "fp64", "fp16+", "fp16+lz4", "fp16+zstd+zstd", "FP16"):
        with pytest.raises(MalformedMessage, match="known: fp32, fp16, int8"):
            codec(name)


@pytest.mark.parametrize(
    ("name", "factor"), [("fp16", 2), ("int8", 3.9), ("fp32+zstd", 1.2), ("int8+zstd", 5)]
)
def test_codecs_compress_activations(name: str, factor: float) -> None:
    array = activations(8, 64, 16, 16)
    assert array.nbytes / len(encode_tensor(name, array).data) >= factor


def pack(data: bytes, announced: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=announced).compress(data)


def refusal(tensor: EncodedTensor, memory: int) -> str:
    """Why `tensor` is refused, with at most `memory` bytes spent on it."""
    tracemalloc.start()
    try:
        with pytest.raises(MalformedMessage) as refused:
            decode_tensor(tensor)
        assert tracemalloc.get_traced_memory()[1] < memory
    finally:
        tracemalloc.stop()
    return str(refused.value)
