# SPDX-License-Identifier: Apache-2.0
"""Settings that belong together: one that would do nothing without another is refused where it is given."""

from __future__ import annotations

import click
from click.core import ParameterSource

from splitee.errors import ConfigError


def given_as_flag(name: str) -> bool:
    """Whether this parameter of the command under way came as an argument of the process.

    Variables and settings files are shared by commands and kept over runs: what is in them may wait for its
    counterpart.
    """
    context = click.get_current_context(silent=True)
    return context is not None and context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def require(counterpart: str, is_there: bool, *flags: str) -> None:
    """Refuse those of `flags` that were given though they do nothing without `counterpart`.

    Args:
        flags: long flags of the command under way, whose parameters are named as they are.

    Raises:
        ConfigError: one was given, and the counterpart is not there.
    """
    for flag in flags:
        if not is_there and given_as_flag(flag.lstrip("-").replace("-", "_")):
            raise ConfigError(f"{flag} does nothing without {counterpart}: give both, or neither")
