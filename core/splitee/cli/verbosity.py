# SPDX-License-Identifier: Apache-2.0
"""`-v` and `-q`: how much a command logs on standard error."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from splitee.cli.settings import setting
from splitee.errors import ConfigError

PACKAGES = (
    "splitee",
    "splitee_broker",
    "splitee_device",
    "splitee_export",
    "splitee_lab",
    "splitee_server",
    "splitee_web",
)
QUIET = "splitee.quiet"  # in the context's `meta`

_VERBOSE = setting("--verbose", "-v", is_flag=True, help="Log more: each message and decision.")
_QUIET = setting(
    "--quiet", "-q", is_flag=True, help="Log only warnings and errors, show no progress; results are printed."
)


def log_options(usual: int = logging.INFO, **packages: int) -> Callable[[Any], Any]:
    """A decorator that adds `-v` and `-q`, above all decorators of the command that log, such as a recipe's.

    Args:
        usual: the level without these flags; WARNING for a command that shows its progress itself.
        packages: those that have another level without the flags.
    """
    levels = dict.fromkeys(PACKAGES, usual) | packages

    def add(command: Callable[..., Any]) -> Any:
        @functools.wraps(command)
        def with_levels(*arguments: Any, verbose: bool, quiet: bool, **named: Any) -> Any:
            if verbose and quiet:
                raise ConfigError("--verbose and --quiet: give one of them")
            click.get_current_context().meta[QUIET] = quiet
            with _logging_at(levels, verbose=verbose, quiet=quiet):
                return command(*arguments, **named)

        return _VERBOSE(_QUIET(with_levels))

    return add


def is_quiet() -> bool:
    """Whether the running command was called with `--quiet`."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(QUIET))


@contextmanager
def _logging_at(levels: dict[str, int], *, verbose: bool, quiet: bool) -> Iterator[None]:
    """`-v`: at least one level more; `-q`: only warnings and errors."""
    before = {name: logging.getLogger(name).level for name in levels}
    try:
        for name, level in levels.items():
            more = logging.DEBUG if level <= logging.INFO else logging.INFO
            logging.getLogger(name).setLevel(more if verbose else max(level, quiet * logging.WARNING))
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
