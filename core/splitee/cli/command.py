# SPDX-License-Identifier: Apache-2.0
"""Commands whose help groups options in named sections, and that suggest corrections of misspelt names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from splitee.suggestions import closest

GENERAL = "General"  # settings file, log level, help: the last section of every command


class Option(click.Option):
    """An option of a section of its command's help."""

    section = GENERAL


class Command(click.Command):
    """A command whose help shows options in the sections given by `section`."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and not isinstance(parameter, click.Argument):
                sections.setdefault(getattr(parameter, "section", GENERAL), []).append(record)
        general = sections.pop(GENERAL, [])
        for title, rows in (*sections.items(), (GENERAL, general)):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


class Group(click.Group):
    """A group that suggests the closest command for a misspelt name."""

    command_class = Command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands, each with the whole first sentence of its help."""
        rows = [(name, self.commands[name].get_short_help_str(limit=200)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and not ctx.resilient_parsing and name not in self.list_commands(ctx):
            known = self.list_commands(ctx)
            meant = closest(name, known)
            hint = f"Did you mean {meant!r}?" if meant else f"Known: {', '.join(known)}."
            raise click.UsageError(f"No such command {name!r}. {hint}", ctx)
        return super().resolve_command(ctx, args)


def section(title: str, *options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A decorator that adds `options` to a command, in this section of its help."""

    def add(command: Any) -> Any:
        before = list(parameters(command))
        for option in reversed(options):
            command = option(command)
        for parameter in parameters(command):
            if isinstance(parameter, Option) and parameter not in before:
                parameter.section = title
        return command

    return add


def parameters(command: Callable[..., Any] | click.Command) -> list[click.Parameter]:
    """Parameters of a command, or of a decorated function that becomes one."""
    if isinstance(command, click.Command):
        return command.params
    found: list[click.Parameter] = getattr(command, "__click_params__", [])
    return found
