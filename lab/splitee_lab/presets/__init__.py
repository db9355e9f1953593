# SPDX-License-Identifier: Apache-2.0
"""Protocols by name: settings of `splitee simulate` in files of this folder."""

from __future__ import annotations

from pathlib import Path

import click

from splitee.cli.settings import read_settings, switch

FOLDER = Path(__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.toml"))


def _load(context: click.Context, _parameter: click.Parameter, name: str | None) -> None:
    """Flags, variables and --config override a protocol's settings, in whatever order they come."""
    if name is not None:
        settings = read_settings(context.command, FOLDER / f"{name}.toml")
        context.default_map = {**settings, **(context.default_map or {})}


protocol_option = switch(
    "--protocol",
    type=click.Choice(NAMES),
    envvar="SPLITEE_PROTOCOL",
    is_eager=True,
    expose_value=False,
    callback=_load,
    help="Name of a set of settings; flags, variables and --config override it.",
    show_default="none",
)
