"""Hypothesis strategies for every message of the wire, made from the messages' own declarations."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import splitee.messages  # noqa: F401 - declares the subclasses that are looked up
from splitee.wire import JsonMessage, PackedMessage

# The same examples in every run; benchmarks/fuzz_messages.py looks for new ones.
settings.register_profile("splitee", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("splitee")

MESSAGES: tuple[type[JsonMessage | PackedMessage], ...] = (
    *JsonMessage.__subclasses__(),
    *PackedMessage.__subclasses__(),
)
PLAIN = st.none() | st.booleans() | st.integers(-(1 << 53), 1 << 53) | st.text(max_size=20)
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
Array = npt.NDArray[np.float32]


def messages(kind: type[Any]) -> st.SearchStrategy[Any]:
    """Valid messages of `kind`, within the bounds that its fields declare."""
    return _of(msgspec.inspect.type_info(kind))


def arrays(values: st.SearchStrategy[float] = FINITE) -> st.SearchStrategy[Array]:
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
    match kind:
        case msgspec.inspect.StructType():
            fields = {field.name: _of(field.type) for field in kind.fields}
            return st.builds(kind.cls, **fields)
        case msgspec.inspect.IntType():
            low = -(1 << 62) if kind.ge is None else kind.ge
            high = 1 << 62 if kind.le is None else kind.le
            return st.integers(low, high if kind.lt is None else kind.lt - 1)
        case msgspec.inspect.FloatType():
            floats = st.floats(kind.ge, kind.le, allow_nan=False, allow_infinity=False)
            return floats if kind.gt is None else floats.filter(lambda value: value > kind.gt)
        case msgspec.inspect.StrType(pattern=None):
            return st.text(min_size=kind.min_length or 0, max_size=min(kind.max_length or 20, 20))
        case msgspec.inspect.StrType():
            return st.from_regex(kind.pattern)
        case msgspec.inspect.BytesType():
            return st.binary(min_size=kind.min_length or 0, max_size=100)
        case msgspec.inspect.BoolType():
            return st.booleans()
        case msgspec.inspect.NoneType():
            return st.none()
        case msgspec.inspect.AnyType():
            return PLAIN | st.lists(PLAIN, max_size=3)
        case msgspec.inspect.LiteralType():
            return st.sampled_from(kind.values)
        case msgspec.inspect.UnionType():
            return st.one_of(*map(_of, kind.types))
        case msgspec.inspect.TupleType():
            return st.tuples(*map(_of, kind.item_types))
        case msgspec.inspect.ListType():
            return st.lists(_of(kind.item_type), min_size=kind.min_length or 0, max_size=4)
        case msgspec.inspect.VarTupleType():
            return st.lists(_of(kind.item_type), max_size=4).map(tuple)
        case msgspec.inspect.DictType():
            return st.dictionaries(_of(kind.key_type), _of(kind.value_type), max_size=3)
    raise TypeError(f"no strategy for {kind}")
