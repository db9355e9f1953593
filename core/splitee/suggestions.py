# SPDX-License-Identifier: Apache-2.0
"""Suggestions for names that do not exist."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def closest(name: str, known: Iterable[str]) -> str:
    """The known name most similar to `name`, or "" if none is close."""
    by_lower = {one.lower(): one for one in known}
    close = get_close_matches(name.lower(), by_lower, 1)
    return by_lower[close[0]] if close else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "; did you mean fp16?", or "" if no known name is close."""
    meant = closest(name, known)
    return f"; did you mean {meant}?" if meant else ""


def one_of(name: str, known: Iterable[str]) -> str:
    """What was expected instead of `name`: "one of fp32, fp16, int8; did you mean fp16?"."""
    known = list(known)
    return f"one of {', '.join(known)}{did_you_mean(name, known)}"
