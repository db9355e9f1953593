# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of docs/reference/protocol.md from routes and messages; its text is written by hand."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec.inspect import (
    BoolType,
    BytesType,
    DictType,
    Field,
    FloatType,
    IntType,
    ListType,
    LiteralType,
    Metadata,
    NoneType,
    StrType,
    StructType,
    TupleType,
    Type,
    UnionType,
    VarTupleType,
    type_info,
)

from splitee.protocol.encoding import JsonMessage
from splitee.protocol.parts import Part
from splitee.protocol.release_orders import RolloutPlan
from splitee.protocol.routes import ROUTES, Route

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "protocol.md"
MARK = "<!-- Below this line: made by `make docs`. -->\n"


def page() -> str:
    """The page's text: the part written by hand, and tables generated from the code."""
    by_hand = PAGE.read_text().partition(MARK)[0]
    messages = dict.fromkeys(route.message for route in ROUTES)
    messages[RolloutPlan] = None  # it is sent as the bytes of a file, which an order names
    inside = (struct for kind in messages for struct in structs_in(type_info(kind)))
    structs = dict.fromkeys([*messages, *inside, Part])
    return f"{by_hand}{MARK}\n{topics()}" + "".join(section(struct) for struct in structs)


def topics() -> str:
    """The table of topics and their messages."""
    rows = [
        (
            f"`{route.path.replace('+', 'ID')}`",
            link(route.message),
            route.sender,
            ", ".join(route.readers),
            "yes" if route.retained else "",
            limit(route),
        )
        for route in ROUTES
    ]
    head = ("topic below `splitee/v1/FLEET/`", "message", "written by", "read by", "retained", "at most")
    return "## Topics\n\n" + table(head, rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = (head, ["---"] * len(head), *rows)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def limit(route: Route) -> str:
    if route.parts:
        return f"{route.limit >> 20} MiB, in parts"
    return "1 MiB" if issubclass(route.message, JsonMessage) else "one packet"


def structs_in(kind: Type) -> Iterator[type]:
    """The structs of a type, each before those inside it."""
    match bare(kind):
        case StructType(cls=struct, fields=fields):
            yield struct
            for field in fields:
                yield from structs_in(field.type)
        case UnionType(types=types):
            for each in types:
                yield from structs_in(each)
        case DictType(value_type=item) | VarTupleType(item_type=item) | ListType(item_type=item):
            yield from structs_in(item)


def section(struct: type) -> str:
    """One message: its purpose and its fields."""
    info = type_info(struct)
    assert isinstance(info, StructType)
    summary, meanings = described(struct)
    rows = [
        (f"`{field.encode_name}`", describe_type(field.type), default(field), meaning(field, meanings))
        for field in info.fields
    ]
    head = ("field", "type and bounds", "if absent", "meaning")
    return f"\n## {struct.__name__}\n\n{encoding(info)}{summary}\n\n{table(head, rows)}"


def encoding(info: StructType) -> str:
    if info.array_like:
        return "A msgpack array. "
    if any(route.message is info.cls for route in ROUTES):
        return "JSON. " if issubclass(info.cls, JsonMessage) else "A msgpack map. "
    return ""


def described(struct: type) -> tuple[str, dict[str, str]]:
    """A docstring's summary, and the `Attributes` of the struct and its bases, by name."""
    meanings: dict[str, str] = {}
    for kind in reversed(struct.__mro__):
        text = inspect.cleandoc(kind.__doc__ or "")
        summary, _, attributes = text.partition("\n\nAttributes:\n")
        entries = re.findall(r"^    (\w+): (.+(?:\n     +.+)*)", attributes, re.MULTILINE)
        meanings |= {name: " ".join(meaning.split()) for name, meaning in entries}
    return " ".join(summary.split()), meanings


def meaning(field: Field, meanings: dict[str, str]) -> str:
    """The meaning of a field. Raises KeyError: no docstring describes it."""
    extra = field.type.extra or {} if isinstance(field.type, Metadata) else {}
    help_text: str = extra["help"] if "help" in extra else meanings[field.name]
    return escape(help_text[0].upper() + help_text[1:])


def default(field: Field) -> str:
    """The default of a field, as Markdown."""
    if field.required:
        return "required"
    value = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    if isinstance(value, bytes):
        return "empty"
    return f"`{msgspec.json.encode(value).decode()}`"


def bare(kind: Type) -> Type:
    return bare(kind.type) if isinstance(kind, Metadata) else kind


def describe_type(kind: Type) -> str:
    """A type with its bounds, in words. Raises KeyError: WORDS lacks the type."""
    inner = bare(kind)
    return WORDS[type(inner)](inner)


def text(kind: StrType) -> str:
    if kind.pattern is None:
        return f"text{size(kind, 'characters')}"
    return f"text `{escape(kind.pattern)}`"


def size(kind: Any, unit: str) -> str:
    least, most = kind.min_length, kind.max_length
    if most is None:
        return f", at least {least} {unit}" if least else ""
    return f", {least}..{most:,} {unit}" if least else f", at most {most:,} {unit}"


def between(number: IntType | FloatType) -> str:
    if number.gt is not None:
        return f", above {number.gt}"
    most = number.le if number.lt is None else number.lt - 1
    if most is None:
        return "" if number.ge is None else f", at least {number.ge:,}"
    return f", {number.ge}..{'2^62' if most == 1 << 62 else grouped(most)}"


def grouped(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"


def link(struct: type) -> str:
    return f"[{struct.__name__}](#{struct.__name__.lower()})"


def escape(text: str) -> str:
    return text.replace("|", "\\|")


WORDS: dict[type, Callable[[Any], str]] = {
    StructType: lambda kind: link(kind.cls),
    UnionType: lambda kind: " or ".join(map(describe_type, kind.types)),
    LiteralType: lambda kind: ", ".join(f"`{value}`" for value in kind.values),
    DictType: lambda kind: (
        f"map of {describe_type(kind.key_type)} to {describe_type(kind.value_type)}{size(kind, 'entries')}"
    ),
    VarTupleType: lambda kind: f"array of {describe_type(kind.item_type)}{size(kind, 'items')}",
    ListType: lambda kind: f"array of {describe_type(kind.item_type)}{size(kind, 'items')}",
    TupleType: lambda kind: f"array of {len(kind.item_types)}: {describe_type(kind.item_types[0])}",
    StrType: text,
    BytesType: lambda kind: f"bytes{size(kind, 'bytes')}",
    IntType: lambda kind: f"integer{between(kind)}",
    FloatType: lambda kind: f"number{between(kind)}",
    BoolType: lambda kind: "true or false",
    NoneType: lambda kind: "null",
}
