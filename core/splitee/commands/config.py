# SPDX-License-Identifier: Apache-2.0
"""`splitee config COMMAND`: prints the settings in force for a command, and the source of each."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from splitee.cli.input_options import InputType
from splitee.cli.plain_text import address_without_password, echo, plain
from splitee.errors import ConfigError
from splitee.samples.fitting import format_shape
from splitee.suggestions import did_you_mean

_SOURCES = {
    ParameterSource.COMMANDLINE: "flag",
    ParameterSource.DEFAULT_MAP: "settings file",
    ParameterSource.DEFAULT: "default",
}


def _complete_command(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    group = context.parent.command if context.parent else None
    names = group.list_commands(context) if isinstance(group, click.Group) else []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


@click.command(options_metavar="", context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("command", required=False, shell_complete=_complete_command)
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def config(context: click.Context, command: str | None, flags: tuple[str, ...]) -> None:
    """Print the settings of COMMAND that are in force: flag > SPLITEE_* variable > settings file > default.

    FLAGS are the flags for COMMAND itself, such as: splitee config server --config fleet.toml
    """
    group = context.parent.command if context.parent else None
    if not isinstance(group, click.Group):
        raise TypeError("config is a command of a group")
    if command in (None, "--help", "-h"):
        click.echo(context.get_help())
        return
    found = group.get_command(context, str(command))
    if found is None:
        known = [name for name in group.list_commands(context) if name != context.info_name]
        hint = did_you_mean(str(command), known) or f"; known: {', '.join(known)}"
        raise ConfigError(f"unknown command {command!r}{hint}")
    rows = list(settings(found, list(flags), context.parent))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)] if rows else [0, 0]
    for flag, value, source in rows:
        echo(f"{flag:{widths[0]}}  {value:{widths[1]}}  {source}")


def settings(
    command: click.Command, flags: list[str], parent: click.Context | None = None
) -> Iterator[tuple[str, str, str]]:
    """(flag, value, source) of each of the command's settings, as `flags` and the environment give them.

    Raises:
        ConfigError: a key of the settings file is unknown.
        click.UsageError: a flag is unknown, or a value is not of its type.
    """
    lenient = click.Command(command.name, params=[_optional(parameter) for parameter in command.params])
    with lenient.make_context(command.name, flags, parent=parent) as context:
        for parameter in lenient.params:
            if not isinstance(parameter, click.Option) or parameter.name not in context.params:
                continue
            value = _written(context.params[parameter.name], parameter.type)
            source = context.get_parameter_source(parameter.name)
            required = next(p.required for p in command.params if p.name == parameter.name)
            yield (
                max(parameter.opts, key=len),
                _shown(value, required),
                _origin(parameter, source),
            )


def _optional(parameter: click.Parameter) -> click.Parameter:
    """The same parameter, but optional, because the command is not run."""
    parameter = copy.copy(parameter)
    parameter.required = False
    return parameter


def _written(value: object, kind: click.ParamType[Any]) -> object:
    """The value as it is written for a flag."""
    return format_shape(value) if isinstance(kind, InputType) and isinstance(value, tuple) else value


def _shown(value: object, required: bool) -> str:
    if value is None or value == ():
        return "(missing: required)" if required else "(none)"
    if isinstance(value, bool):
        return "yes" if value else "no"
    values = map(str, value) if isinstance(value, tuple) else [str(value)]
    return plain(", ".join(map(address_without_password, values)))


def _origin(parameter: click.Option, source: ParameterSource | None) -> str:
    if source is ParameterSource.ENVIRONMENT:
        return str(parameter.envvar)
    return _SOURCES.get(source, "") if source else ""
