# SPDX-License-Identifier: Apache-2.0
"""Hypothesis strategies for every message of the protocol, made from the declarations of the messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from splitee.protocol.accuracies import ConfusionMatrix
from splitee.protocol.codecs import LARGEST
from splitee.protocol.encoding import JsonMessage, PackedMessage
from splitee.protocol.fields import LARGEST_COUNT
from splitee.protocol.release_orders import RolloutPlan
from splitee.protocol.routes import ROUTES

# The same examples in every run; benchmarks/fuzz_messages.py tries new ones.
settings.register_profile("splitee", derandomize=True, deadline=None, max_examples=30)
settings.load_profile("splitee")

MESSAGES: tuple[type[JsonMessage | PackedMessage], ...] = tuple(
    dict.fromkeys([*(route.message for route in ROUTES), RolloutPlan])
)
PLAIN = st.none() | st.booleans() | st.integers(-(1 << 53), 1 << 53) | st.text(max_size=20)
WITHIN_BOUNDS = st.floats(-LARGEST, LARGEST, width=32)
_MADE: dict[type[Any], st.SearchStrategy[Any]] = {}  # a cache, so that Hypothesis validates each once
Array = npt.NDArray[np.float32]


def messages(kind: type[Any]) -> st.SearchStrategy[Any]:
    """Valid messages of `kind`, within the bounds that its fields declare."""
    if kind not in _MADE:
        _MADE[kind] = _of(msgspec.inspect.type_info(kind))
    return _MADE[kind]


def arrays(values: st.SearchStrategy[float] = WITHIN_BOUNDS) -> st.SearchStrategy[Array]:
    """Float32 batches of 1 to 4 axes, of one sample or several."""
    shapes = hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=6)
    return hnp.arrays(np.float32, shapes, elements=values)


@st.composite
def damaged(draw: st.DrawFn, payloads: st.SearchStrategy[bytes]) -> bytes:
    """A payload with bytes changed, inserted, removed or repeated."""
    data = bytearray(draw(payloads))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        until = draw(st.integers(at, min(len(data), at + 16)))
        data[at:until] = draw(st.binary(max_size=8) | st.just(bytes(data[at:until]) * 3))
    return bytes(data)


def _of(kind: Any) -> st.SearchStrategy[Any]:
    return _STRATEGIES[type(kind)](kind)


def _int(kind: Any) -> st.SearchStrategy[int]:
    low = -(1 << 62) if kind.ge is None else kind.ge
    high = 1 << 62 if kind.le is None else kind.le
    return st.integers(low, high)


def _float(kind: Any) -> st.SearchStrategy[float]:
    low = kind.ge if kind.gt is None else kind.gt
    return st.floats(low, kind.le, exclude_min=kind.gt is not None, allow_nan=False, allow_infinity=False)


def _str(kind: Any) -> st.SearchStrategy[str]:
    if kind.pattern is not None:
        return st.from_regex(kind.pattern)
    return st.text(min_size=kind.min_length or 0, max_size=min(kind.max_length or 20, 20))


def _struct(kind: Any) -> st.SearchStrategy[Any]:
    if kind.cls is ConfusionMatrix:
        return _matrices()
    return st.builds(kind.cls, **{field.name: _of(field.type) for field in kind.fields})


@st.composite
def _matrices(draw: st.DrawFn) -> ConfusionMatrix:
    """Square matrices; the declarations of the fields do not require that."""
    size, counts = draw(st.integers(0, 3)), st.integers(0, LARGEST_COUNT)
    row = st.lists(counts, min_size=size, max_size=size).map(tuple)
    return ConfusionMatrix(draw(row), tuple(draw(row) for _ in range(size)))


_STRATEGIES: dict[type[Any], Callable[[Any], st.SearchStrategy[Any]]] = {
    msgspec.inspect.StructType: _struct,
    msgspec.inspect.Metadata: lambda kind: _of(kind.type),
    msgspec.inspect.IntType: _int,
    msgspec.inspect.FloatType: _float,
    msgspec.inspect.StrType: _str,
    msgspec.inspect.BytesType: lambda kind: st.binary(min_size=kind.min_length or 0, max_size=100),
    msgspec.inspect.BoolType: lambda kind: st.booleans(),
    msgspec.inspect.NoneType: lambda kind: st.none(),
    msgspec.inspect.AnyType: lambda kind: PLAIN | st.lists(PLAIN, max_size=3),
    msgspec.inspect.LiteralType: lambda kind: st.sampled_from(kind.values),
    msgspec.inspect.UnionType: lambda kind: st.one_of(*map(_of, kind.types)),
    msgspec.inspect.TupleType: lambda kind: st.tuples(*map(_of, kind.item_types)),
    msgspec.inspect.ListType: lambda kind: st.lists(
        _of(kind.item_type), min_size=kind.min_length or 0, max_size=4
    ),
    msgspec.inspect.VarTupleType: lambda kind: st.lists(
        _of(kind.item_type), min_size=kind.min_length or 0, max_size=4
    ).map(tuple),
    msgspec.inspect.DictType: lambda kind: st.dictionaries(
        _of(kind.key_type), _of(kind.value_type), max_size=3
    ),
}
