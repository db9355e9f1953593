# SPDX-License-Identifier: Apache-2.0
"""The size of a round: the values of `--sample` and `--steps`."""

from __future__ import annotations

import re
from typing import Any

import click

from splitee.cli.bounds import OutOfBounds, given, whole
from splitee.protocol.fields import LARGEST_COUNT, SAMPLE

TIME_PREFIX = "time:"
LONGEST = 86_400  # seconds of a round


class SampleSize(click.ParamType[str]):
    """`all`, a number of devices, or a share of them in percent, as RunSpec.sample has it."""

    name = "all|count|percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if re.search(SAMPLE, str(value)):
            return str(value)
        expected = "all, a whole number from 1, or a share from 1% to 100%"
        raise OutOfBounds(f"{given(value, param, ctx)}: {expected}", ctx, param)


class Steps(click.ParamType[int | str]):
    """A number of batches, or the time of a round as `time:SECONDS`."""

    name = "count|time:seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        text = str(value)
        if not text.startswith(TIME_PREFIX):
            return int(whole(0, LARGEST_COUNT).convert(value, param, ctx))
        if (found := re.fullmatch(TIME_PREFIX + "([0-9]{1,5})", text)) and 1 <= int(found[1]) <= LONGEST:
            return text
        expected = f"{TIME_PREFIX} and whole seconds from 1 to {LONGEST}, such as {TIME_PREFIX}60"
        raise OutOfBounds(f"{given(value, param, ctx)}: {expected}", ctx, param)


def to_fields(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with `steps` as a number, and `round_seconds` if a time was given."""
    steps = settings.get("steps")
    if not isinstance(steps, str):
        return settings
    return {**settings, "steps": 0, "round_seconds": float(steps.removeprefix(TIME_PREFIX))}
