# SPDX-License-Identifier: Apache-2.0
"""Messages: each is decoded as it was encoded, and a hostile payload raises MalformedMessage only."""

from __future__ import annotations

import math
import struct
import tracemalloc
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.strategies import MESSAGES, damaged, messages

from splitee.errors import MalformedMessage
from splitee.protocol.codecs import EncodedTensor, decode_tensor, encode_tensor
from splitee.protocol.encoding import MAX_ITEMS, MAX_JSON, MAX_PACKED, JsonMessage, PackedMessage
from splitee.protocol.fleet import DeviceStatus, Profile, ServerStatus
from splitee.protocol.labels import decode_entropy, decode_labels, encode_labels, label_type
from splitee.protocol.rounds import Commit, Features, RoundDone, SoftLabelRows, Weights
from splitee.protocol.run_spec import RunSpec

AMPLIFICATION = 64  # bytes of memory that a byte of a hostile payload may cost at most
BASE_COST = 1 << 16
PACKED = [kind for kind in MESSAGES if issubclass(kind, PackedMessage)]
JSON = [kind for kind in MESSAGES if issubclass(kind, JsonMessage)]

EVERY_MESSAGE = pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
EVERY_PACKED = pytest.mark.parametrize("kind", PACKED, ids=lambda kind: kind.__name__)
EVERY_JSON = pytest.mark.parametrize("kind", JSON, ids=lambda kind: kind.__name__)


def accepted(kind: type[Any], payload: bytes) -> Any:
    """The message, or None if it is refused; any other exception fails the test."""
    try:
        return kind.decode(payload)
    except MalformedMessage as error:
        assert "\n" not in str(error)
        return None


def refusal(kind: type[Any], payload: bytes) -> str:
    """The reason for which `payload` is refused; checks the memory that it takes."""
    tracemalloc.start()
    try:
        with pytest.raises(MalformedMessage) as refused:
            kind.decode(payload)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < BASE_COST + AMPLIFICATION * len(payload)
    return str(refused.value)


def features(**changes: Any) -> dict[str, Any]:
    tensor = encode_tensor("fp16", np.ones((2, 3, 4, 4), np.float32))
    fields = {"run": "r", "round": 1, "attempt": 0, "phase": "train", "step": 0, "labels": b"\0\1"}
    return {**fields, "features": msgspec.to_builtins(tensor, builtin_types=(bytes,)), **changes}


def round_done(**changes: Any) -> bytes:
    fields = {"run": "r", "round": 1, "attempt": 0, "digest": "0" * 64, "batches": 1, "bytes": 1}
    return msgspec.msgpack.encode({**fields, "loss": 1.0, "accuracy": 0.5, "seconds": 1.0, **changes})


def test_messages_include_json_and_packed_kinds() -> None:
    assert len(JSON) >= 9
    assert {Features, RoundDone, SoftLabelRows, Weights} <= set(PACKED)


@EVERY_MESSAGE
@given(data=st.data())
def test_message_round_trips_and_damaged_payload_is_refused_or_valid(
    kind: type[Any], data: st.DataObject
) -> None:
    message = data.draw(messages(kind))
    payload = message.encode()
    assert kind.decode(payload) == message
    length = data.draw(st.integers(0, len(payload) - 1))
    for damaged_payload in (payload[:length], payload + b"\x01"):
        with pytest.raises(MalformedMessage):
            kind.decode(damaged_payload)
    other = accepted(kind, data.draw(damaged(st.just(payload))))
    assert other is None or kind.decode(other.encode()) == other


@EVERY_MESSAGE
@given(payload=st.binary(max_size=200))
def test_random_bytes_are_refused_or_valid(kind: type[Any], payload: bytes) -> None:
    message = accepted(kind, payload)
    assert message is None or kind.decode(message.encode()) == message


@EVERY_MESSAGE
def test_refusal_names_the_message_type(kind: type[Any]) -> None:
    assert refusal(kind, b"\xc1").startswith(f"{kind.__name__}: ")


@EVERY_PACKED
@pytest.mark.parametrize(
    "head",
    [
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\x81\xa3run\xdb\xff\xff\xff\xff",
        b"\x81\xa7unknown\xdd\xff\xff\xff\xff",
        b"\x81\xa7unknown\xc9\xff\xff\xff\xff\x01",
        b"\x81\xa8features\xdf\xff\xff\xff\xff",
        b"\x81\xa7tensors\xdf\xff\xff\xff\xff",
    ],
    ids=["map", "array", "bin", "str", "ext", "run", "unknown", "unknown ext", "features", "tensors"],
)
def test_announced_lengths_do_not_allocate_memory(kind: type[Any], head: bytes) -> None:
    refusal(kind, head + b"\x00" * 64)


@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1x", b"\xdc\xff\xff"], ids=["array", "map", "long"])
@EVERY_PACKED
def test_deeply_nested_msgpack_is_refused(kind: type[Any], opening: bytes) -> None:
    refusal(kind, b"\x81\xa7unknown" + opening * 100_000)


@pytest.mark.parametrize("text", ["[" * 100_000, "[" * 100_000 + "]" * 100_000, '{"x":' * 100_000])
@EVERY_JSON
def test_deeply_nested_json_is_refused(kind: type[Any], text: str) -> None:
    refusal(kind, f'{{"unknown": {text}}}'.encode())


@EVERY_JSON
def test_json_over_the_size_limit_is_refused(kind: type[Any]) -> None:
    assert str(MAX_JSON) in refusal(kind, b" " * (MAX_JSON + 1))


def test_msgpack_over_the_size_limit_is_refused() -> None:
    assert str(MAX_PACKED) in refusal(Features, bytes(MAX_PACKED + 1))


def test_capability_of_too_many_cuts_is_refused() -> None:
    cuts = ",".join(['{"cut":1,"seconds":1,"bytes":1,"memory":1,"fits":true}'] * 1001)
    capability = (
        f'{{"network":"n","batch_size":2,"codec":"fp16","machine":"m","cores":1,"threads":1,"cuts":[{cuts}]}}'
    )
    fields = '"protocol":1,"instance":1,"version":"1","cut":1,"class_names":[],"train_samples":1'
    payload = f'{{{fields},"held_out_samples":0,"capability":{capability}}}'.encode()
    assert "$.capability.cuts" in refusal(Profile, payload)


def test_too_many_tensors_are_refused_before_they_are_read() -> None:
    head = b"\x83\xa3run\xa1r\xa5round\x00\xa7tensors\xdf" + struct.pack(">I", MAX_ITEMS + 1)
    assert f"length <= {MAX_ITEMS} - at `$.tensors`" in refusal(Weights, head + bytes(1 << 20))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"step": -1}, "$.step"),
        ({"step": 1 << 63}, "$.step"),
        ({"step": True}, "$.step"),
        ({"phase": "rest"}, "$.phase"),
        ({"run": "r" * 101}, "$.run"),
        ({"labels": "01"}, "$.labels"),
        ({"features": {"codec": "fp16", "shape": [], "data": b""}}, "$.features.shape"),
        ({"features": {"codec": "fp16", "shape": [1] * 7, "data": b""}}, "$.features.shape"),
        ({"features": {"codec": "fp16", "shape": [0], "data": b""}}, "$.features.shape[0]"),
        ({"features": {"codec": "fp16", "shape": [-1], "data": b""}}, "$.features.shape[0]"),
        ({"features": {"codec": "fp16", "shape": [1 << 25], "data": b""}}, "$.features.shape[0]"),
        ({"features": {"codec": "f" * 17, "shape": [1], "data": b""}}, "$.features.codec"),
        ({"features": {"codec": b"fp16", "shape": [1], "data": b""}}, "$.features.codec"),
    ],
)
def test_refusal_names_the_invalid_field(changes: dict[str, Any], named: str) -> None:
    assert f"`{named}`" in refusal(Features, msgspec.msgpack.encode(features(**changes)))


@pytest.mark.parametrize("field", ["run", "round", "attempt", "phase", "step", "features", "labels"])
def test_refusal_names_the_missing_field(field: str) -> None:
    fields = features()
    del fields[field]
    assert f"`{field}`" in refusal(Features, msgspec.msgpack.encode(fields))


def test_keys_that_are_not_text_are_refused() -> None:
    refusal(Features, msgspec.msgpack.encode({1: 2, **features()}))


@pytest.mark.parametrize("field", ["loss", "accuracy", "seconds"])
@pytest.mark.parametrize("value", [math.nan, -math.inf, -1.0])
def test_nan_and_negative_figures_are_refused(field: str, value: float) -> None:
    assert RoundDone.decode(round_done())
    assert f"`$.{field}`" in refusal(RoundDone, round_done(**{field: value}))


@pytest.mark.parametrize("field", ["loss", "accuracy"])
def test_infinite_figures_are_refused(field: str) -> None:
    assert f"`$.{field}`" in refusal(RoundDone, round_done(**{field: math.inf}))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "9" * 5000])
def test_json_numbers_that_are_not_finite_are_refused(number: str) -> None:
    refusal(DeviceStatus, f'{{"state": "online", "instance": 1, "time": {number}}}'.encode())


@pytest.mark.parametrize("name", ["", "-pi", ".", "a" * 65, "a/b", "a+", "#", "a b", "pi\n", "pi\0", "ä"])
def test_invalid_device_names_are_refused(name: str) -> None:
    status = ServerStatus(state="online", instance=1)
    fields = {**msgspec.to_builtins(status), "waiting_for": [name]}
    refusal(ServerStatus, msgspec.json.encode(fields))


@pytest.mark.parametrize("digest", ["0" * 63, "0" * 65, "A" * 64, "0" * 64 + "\n"])
def test_invalid_digests_are_refused(digest: str) -> None:
    fields = {"run": "r", "round": 1, "attempt": 1, "weights_sha256": digest}
    assert "weights_sha256" in refusal(Commit, msgspec.json.encode(fields))


def test_fields_of_a_later_version_are_ignored() -> None:
    spec = RunSpec(protocol=1, run="r", network="resnet18", num_classes=10, rounds=1)
    later = {**msgspec.to_builtins(spec), "later": {"and": [1, "more"]}}
    assert RunSpec.decode(msgspec.json.encode(later)) == spec


def test_encoding_and_decoding_a_tensor_take_bounded_memory() -> None:
    """A batch takes its own bytes, and no copies that grow with it."""
    data = bytes(8 << 20)
    message = Weights(run="r", round=1, tensors={"w": EncodedTensor("fp32", [1 << 21], data)})
    tracemalloc.start()
    try:
        payload = message.encode()
        held, encoded = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        assert Weights.decode(payload) == message
        decoded = tracemalloc.get_traced_memory()[1] - held
    finally:
        tracemalloc.stop()
    assert held < 1.01 * len(data)  # kept in the window
    assert encoded < 3.1 * len(data)  # for a moment: the payload, and the packer's buffer, which doubles
    assert decoded < 1.1 * len(data)


@given(tensor=messages(EncodedTensor), codec=st.sampled_from(["fp32", "fp16", "int8", "fp16+zstd", "fp64"]))
def test_random_tensors_are_refused_or_decoded_to_their_shape(tensor: EncodedTensor, codec: str) -> None:
    try:
        array = decode_tensor(msgspec.structs.replace(tensor, codec=codec))
    except MalformedMessage:
        return
    assert array.shape == tuple(tensor.shape)
    assert np.isfinite(array).all()


@given(st.lists(st.integers(0, 299)))
def test_labels_round_trip(labels: list[int]) -> None:
    array = np.array(labels, dtype=np.int64)
    assert decode_labels(encode_labels(array, 300), len(labels), 300).tolist() == labels


@pytest.mark.parametrize(("classes", "size"), [(2, 1), (256, 1), (257, 2), (10_000, 2)])
def test_label_size_follows_the_number_of_classes(classes: int, size: int) -> None:
    assert label_type(classes).itemsize == size
    largest = np.array([classes - 1])
    assert decode_labels(encode_labels(largest, classes), 1, classes).tolist() == [classes - 1]


@pytest.mark.parametrize("classes", [10, 300])
def test_labels_out_of_range_are_refused(classes: int) -> None:
    data = encode_labels(np.array([classes]), classes)
    with pytest.raises(MalformedMessage, match=f"label {classes} in a run of {classes} classes"):
        decode_labels(data, 1, classes)


@given(st.binary(max_size=40), st.integers(0, 20), st.sampled_from([2, 256, 257, 10_000]))
def test_hostile_labels_are_refused_or_in_range(data: bytes, count: int, classes: int) -> None:
    try:
        labels = decode_labels(data, count, classes)
    except MalformedMessage:
        return
    assert len(labels) == count
    assert ((labels >= 0) & (labels < classes)).all()


@given(st.binary(max_size=40), st.integers(0, 20))
def test_hostile_entropies_are_refused_or_in_range(data: bytes, count: int) -> None:
    try:
        entropy = decode_entropy(data, count)
    except MalformedMessage:
        return
    assert len(entropy) == count
    assert ((entropy >= 0) & (entropy <= 1)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1, 1.1])
def test_entropies_out_of_range_are_refused(value: float) -> None:
    with pytest.raises(MalformedMessage, match=r"0\.\.1"):
        decode_entropy(np.array([0.5, value], "<f2").tobytes(), 2)
