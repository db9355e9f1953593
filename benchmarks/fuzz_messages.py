# SPDX-License-Identifier: Apache-2.0
"""Fuzzes every decoder of messages; any exception but MalformedMessage is a finding.

    python -m benchmarks.fuzz_messages [-max_total_time=60] [CORPUS]

libFuzzer (atheris) drives the Hypothesis strategies of the tests, so that its inputs are nearly valid; the
flags are libFuzzer's. An input that fails is written to ./crash-*; pass that file to run it again.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]
import msgspec
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

with atheris.instrument_imports(include=["splitee"]):
    from tests.core.strategies import MESSAGES, damaged, messages

    from splitee.errors import MalformedMessage
    from splitee.protocol.codecs import CODECS, EncodedTensor, codec, decode_tensor
    from splitee.protocol.labels import decode_entropy, decode_labels
    from splitee.protocol.parts import Assembler
    from splitee.protocol.rounds import Features, SoftLabelRows, Weights
    from splitee.protocol.topics import Topics

CLASSES = 300
TOPICS = Topics("home")
SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=4)


PARTS = st.builds(
    lambda message, index, data: msgspec.msgpack.encode((message, index, 3, 12, data)),
    st.integers(0, 3),
    st.integers(0, 2),
    st.binary(min_size=1, max_size=6),
)


def payloads(kind: type[Any]) -> st.SearchStrategy[bytes]:
    return damaged(messages(kind).map(lambda message: message.encode())) | st.binary()


@given(st.sampled_from(MESSAGES).flatmap(lambda kind: st.tuples(st.just(kind), payloads(kind))))
def as_message(attempt: tuple[type[Any], bytes]) -> None:
    """An accepted message survives encoding and decoding; its fields are passed to their decoders."""
    kind, payload = attempt
    with contextlib.suppress(MalformedMessage):
        message = kind.decode(payload)
        assert kind.decode(message.encode()) == message
        if isinstance(message, Features):
            count = len(checked(message.features))
            decode_labels(message.labels, count, CLASSES)
            decode_entropy(message.exit_entropy, count)
        elif isinstance(message, Weights):
            for tensor in message.tensors.values():
                checked(tensor)
        elif isinstance(message, SoftLabelRows):
            checked(message.rows)


@given(st.sampled_from(CODECS), SHAPES, st.binary())
def as_tensor(name: str, shape: list[int], data: bytes) -> None:
    with contextlib.suppress(MalformedMessage):
        size = codec(name).size(tuple(shape))
        checked(EncodedTensor(name, shape, data if "+" in name else data.ljust(size, b"\0")[:size]))


def checked(tensor: EncodedTensor) -> np.ndarray:
    array = decode_tensor(tensor)
    assert array.shape == tuple(tensor.shape)
    assert np.isfinite(array).all()
    return array


@given(st.lists(st.tuples(st.sampled_from("ab"), PARTS | damaged(PARTS))))
def as_parts(arrivals: list[tuple[str, bytes]]) -> None:
    assembler = Assembler(limit=1 << 10, total=1 << 11)
    for sender, payload in arrivals:
        with contextlib.suppress(MalformedMessage):
            assembler.add(sender, payload)


@given(st.text())
def as_topic(tail: str) -> None:
    parsed = TOPICS.parse_device(f"{TOPICS.base}/devices/{tail}")
    assert parsed is None or "/" not in parsed[0]


TESTS: tuple[Any, ...] = (as_message, as_tensor, as_parts, as_topic)
ATTEMPTS = [test.hypothesis.fuzz_one_input for test in TESTS]


def fuzz(data: bytes) -> None:
    """The first byte selects the test, whose input is the rest."""
    if data:
        ATTEMPTS[data[0] % len(ATTEMPTS)](data[1:])


def main() -> None:
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
