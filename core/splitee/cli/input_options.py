# SPDX-License-Identifier: Apache-2.0
"""Options for a network's input: its shape, and the region of the camera's image."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

from splitee.cli.bounds import OutOfBounds, given
from splitee.cli.settings import setting
from splitee.errors import ConfigError
from splitee.protocol.fields import LARGEST_SIDE
from splitee.samples.fitting import PHOTO_SHAPE, Region, Shape, format_shape

SMALLEST_SIDE = 8  # pixels


class InputType(click.ParamType[Shape]):
    """An input's shape, written CxHxW."""

    name = "CxHxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Shape:
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"([13])x([0-9]{1,4})x([0-9]{1,4})", value.strip().lower())
        if match is not None:
            channels, height, width = map(int, match.groups())
            if SMALLEST_SIDE <= height <= LARGEST_SIDE and SMALLEST_SIDE <= width <= LARGEST_SIDE:
                return channels, height, width
        raise OutOfBounds(
            f"{given(value, param, ctx)}: channels (1 or 3), height and width ({SMALLEST_SIDE} to "
            f"{LARGEST_SIDE} pixels), such as {format_shape(PHOTO_SHAPE)}",
            ctx,
            param,
        )


class RegionType(click.ParamType[Region]):
    """A region of an image, written X,Y,W,H."""

    name = "X,Y,W,H"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Region:
        if isinstance(value, Region):
            return value
        try:
            return Region.parse(value)
        except ConfigError as error:
            raise OutOfBounds(f"{given(value, param, ctx)}: {error}", ctx, param) from None


def region_setting(**attributes: Any) -> Callable[[Any], Any]:
    """The option `--region`."""
    return setting("--region", type=RegionType(), metavar=RegionType.name, **attributes)
