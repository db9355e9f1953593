# SPDX-License-Identifier: Apache-2.0
"""Settings that depend on each other: a flag that has no effect without another is refused."""

from __future__ import annotations

import click
from click.core import ParameterSource

from splitee.errors import ConfigError


def given_as_flag(name: str) -> bool:
    """Whether this parameter of the running command was given on the command line.

    Variables and settings files are shared by commands and runs, so a setting there may be without its
    counterpart.
    """
    context = click.get_current_context(silent=True)
    return context is not None and context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def require(counterpart: str, is_there: bool, *flags: str) -> None:
    """Refuse given `flags` that have no effect without `counterpart`.

    Args:
        flags: long flags of the running command; its parameters have the same names.

    Raises:
        ConfigError: a flag was given without the counterpart.
    """
    for flag in flags:
        if not is_there and given_as_flag(flag.lstrip("-").replace("-", "_")):
            raise ConfigError(f"{flag} does nothing without {counterpart}: give both, or neither")
