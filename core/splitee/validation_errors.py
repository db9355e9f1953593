# SPDX-License-Identifier: Apache-2.0
"""Validation errors of msgspec as clear messages: the field, what was expected, what came."""

from __future__ import annotations

import json
import re
from typing import Any

from splitee.cli.plain_text import plain

KINDS = {
    "float": "a number",
    "int": "a whole number",
    "str": "a text",
    "bool": "true or false",
    "array": "a list",
    "object": "a map",
    "bytes": "bytes",
    "null": "nothing",
}
SHOWN = 40  # characters of a value
NOTHING = object()

_PATH = re.compile(r" - at `(?:key in )?\$(?P<path>[^`]*)`$")
_BOUNDS = (
    (r"of length <= (\S+)", r"of length \1 at most"),
    (r"of length >= (\S+)", r"of length \1 at least"),
    (r"<= (\S+)", r"of at most \1"),
    (r">= (\S+)", r"of at least \1"),
    (r"< (\S+)", r"below \1"),
    (r"> (\S+)", r"above \1"),
)


def format_error(error: Exception, value: Any = NOTHING) -> str:
    """A validation error of msgspec, such as "Expected `float` <= 1.0 - at `$.x`", in a user's words.

    Args:
        value: the refused value, or the JSON that holds it, to show what came.

    Returns:
        "x 2.0: expected a number of at most 1.0"; other errors as they are.
    """
    text = str(error)
    found = _PATH.search(text)
    path = found["path"].lstrip(".") if found else ""
    expected = text[: found.start()] if found else text
    for pattern, words in _BOUNDS:
        if re.search(pattern, expected):
            expected = re.sub(pattern, words, expected)
            break
    expected = re.sub(r"`(\w+)`", lambda kind: KINDS.get(kind[1], kind[1]), expected)
    expected = expected[:1].lower() + expected[1:]
    came = _shown(_at(value, path)) if path else ""
    return f"{path} {came}".strip() + f": {expected}" if path else expected


def _at(value: Any, path: str) -> Any:
    """The part of `value` at a path such as `a.b[3]`; NOTHING: it cannot be found."""
    try:
        if isinstance(value, bytes):
            value = json.loads(value)
        for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
            value = value[int(index)] if index else value[name]
    except (ValueError, LookupError, TypeError):
        return NOTHING
    return value


def _shown(value: Any) -> str:
    if value is NOTHING:
        return ""
    text = plain(repr(value) if isinstance(value, list | dict) else str(value))
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
