# SPDX-License-Identifier: Apache-2.0
"""Groups of options that several commands share, declared once and passed as one argument."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from splitee.cli.command import parameters, section

Option = Callable[[Any], Any]
"""What `settings.setting` and `click.option` return."""


def option_group(
    argument: str, make: Callable[..., Any], *options: Option, title: str
) -> Callable[[Any], Any]:
    """A decorator that adds `options` to a command; the command gets the result of `make` as `argument`.

    Args:
        title: the section of the command's help that they are in.
        make: takes the options' values by their names; raises ConfigError if they do not fit together.
    """
    names = _names(options)

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_group(**arguments: Any) -> Any:
            given = {name: arguments.pop(name) for name in names}
            return command(**{argument: make(**given)}, **arguments)

        add_options: Callable[[Any], Callable[..., Any]] = section(title, *options)
        return add_options(with_group)

    return add


def _names(options: tuple[Option, ...]) -> list[str]:
    """Names of the parameters that the options set."""

    def nothing() -> None: ...

    for option in options:
        option(nothing)
    return [str(parameter.name) for parameter in parameters(nothing)]
