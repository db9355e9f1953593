# SPDX-License-Identifier: Apache-2.0
"""Numbers with bounds, and clear messages for values outside: `--threshold 2: between 0 and 1`."""

from __future__ import annotations

import math
import re
from typing import Any

import click
from click.core import ParameterSource

LARGEST = 1_000_000_000  # of a setting without a limit of its own: it fits every counter and every wait
MOST_THREADS = 1024


class OutOfBounds(click.BadParameter):
    """A value outside the bounds of a setting, with its source and the permitted values."""

    def format_message(self) -> str:
        return self.message


class Number(click.ParamType[float]):
    """A whole number, or any, from `least` to `most`."""

    def __init__(
        self,
        kind: type[int] | type[float],
        least: float | None = None,
        most: float | None = None,
        *,
        above: bool = False,
        below: bool = False,
    ) -> None:
        """`above`: `least` itself is too little; `below`: `most` itself is too much.

        Without `most`, numbers are at most `LARGEST`. `bounds` does not show so large limits.
        """
        self.name = "N" if kind is int else "NUMBER"
        self.kind = kind
        self.least = least
        self.most = LARGEST if most is None else most
        self.above = above
        self.below = below

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | float:
        try:
            number = self.kind(value)
        except (TypeError, ValueError):
            number = math.nan
        if isinstance(number, int) or math.isfinite(number):  # an integer may be beyond any float
            if self._has(number):
                return number
            expected = f"at most {self.most}" if LARGEST <= self.most < number else self.bounds()
        else:
            expected = f"{self._describe_kind()} {self.bounds()}".rstrip()
        raise OutOfBounds(f"{given(value, param, ctx)}: {expected}", ctx, param)

    def bounds(self) -> str:
        """The permitted values as a phrase; "" without bounds."""
        least = None if self.least is None else self._shown(self.least)
        most = None if self.most >= LARGEST else self._shown(self.most)
        if least is None:
            return "" if most is None else f"at most {most}"
        if most is None:
            return f"more than {least}" if self.above else f"at least {least}"
        if self.above:
            return f"more than {least}, {'less than' if self.below else 'at most'} {most}"
        return f"from {least} to {most}" if self.kind is int else f"between {least} and {most}"

    def _shown(self, bound: float) -> str:
        return f"{bound:.0f}" if self.kind is int else f"{bound:g}"

    def _has(self, number: float) -> bool:
        too_little = self.least is not None and (number <= self.least if self.above else number < self.least)
        too_much = number >= self.most if self.below else number > self.most
        return not too_little and not too_much

    def _describe_kind(self) -> str:
        return "a whole number" if self.kind is int else "a number"

    def __repr__(self) -> str:
        return f"{self.name} {self.bounds()}".rstrip()


class CountOrAuto(click.ParamType[int | str]):
    """A whole number from 0, or `auto`."""

    name = "count|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value == "auto":
            return str(value)
        if re.fullmatch("[0-9]{1,5}", str(value)) and int(value) <= 10_000:
            return int(value)
        raise OutOfBounds(f"{given(value, param, ctx)}: auto, or a whole number from 0 to 10000", ctx, param)


def whole(least: int | None = None, most: int | None = None) -> Number:
    """A whole number within these bounds, both included."""
    return Number(int, least, most)


def number(
    least: float | None = None, most: float | None = None, *, above: bool = False, below: bool = False
) -> Number:
    """A number within these bounds, both included; with `above` without the least, `below` the most."""
    return Number(float, least, most, above=above, below=below)


def given(value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
    """The value as the user has written it: by a flag, a variable, or the settings file."""
    if param is None or param.name is None:
        return str(value)
    flag = max(param.opts, key=len)
    source = ctx.get_parameter_source(param.name) if ctx is not None else None
    if source is ParameterSource.ENVIRONMENT and isinstance(param.envvar, str):
        return f"{param.envvar}={value}"
    if source is ParameterSource.DEFAULT_MAP:
        return f"{flag.lstrip('-')} = {value} in the settings file"
    return f"{flag} {value}"
