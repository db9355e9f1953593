# SPDX-License-Identifier: Apache-2.0
"""Writes docs/reference/commands.md: every command and its settings, from the commands themselves."""

from __future__ import annotations

import inspect
from importlib.metadata import entry_points
from pathlib import Path

import click

from splitee.cli.bounds import Number
from splitee.cli.command import GENERAL, Option

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "commands.md"
HEAD = """# Commands and settings

Made by `make docs` from the commands themselves. Each setting is a flag, a `SPLITEE_*` variable where one is
named, and a key of the settings file (`--config FILE`, TOML: the flag without its dashes).
Flag > variable > file > default. `splitee config COMMAND` prints the settings in force, and where each comes
from. Names of commands, flags and choices that do not exist are refused with the nearest that do.

## Log level

Commands log to the standard error; results go to the standard output. `-v` logs each message and decision,
`-q` leaves warnings, errors and the results: no progress is shown.

## Completion in the shell

With one line the Tab key completes commands, flags and choices, once the shell is started anew:

| shell | line |
|---|---|
| bash | `echo 'eval "$(_SPLITEE_COMPLETE=bash_source splitee)"' >> ~/.bashrc` |
| zsh | `echo 'eval "$(_SPLITEE_COMPLETE=zsh_source splitee)"' >> ~/.zshrc` |
| fish | `_SPLITEE_COMPLETE=fish_source splitee > ~/.config/fish/completions/splitee.fish` |
"""
ROW = "| {} | {} | {} | {} | {} | {} |"
HEADINGS = ("flag", "variable", "takes", "unit", "default", "for")
NO_UNIT = ("COUNT", "CUT", "PORT")  # metavars of numbers without a unit


def page() -> str:
    """The page's text."""
    entries = sorted(entry_points(group="splitee.commands"), key=lambda entry: entry.name)
    tables = [table(entry.name, entry.load()) for entry in entries]
    return HEAD + "".join(tables)


def table(name: str, command: click.Command) -> str:
    """One command's settings by section of its help; for a group, the tables of all its commands."""
    if isinstance(command, click.Group):
        return "".join(table(f"{name} {part}", command.commands[part]) for part in sorted(command.commands))
    context = click.Context(command, info_name=name)
    sections: dict[str, list[str]] = {}
    for option in command.params:
        if isinstance(option, Option) and not option.hidden:
            sections.setdefault(option.section, []).append(row(option, context))
    if not sections:
        return ""
    general = sections.pop(GENERAL, [])
    usage = " ".join([f"splitee {name}", *command.collect_usage_pieces(context)])
    lines = [f"\n## splitee {name}\n", f"    {usage}\n", f"{_paragraphs(command.help or '')}\n"]
    for title, rows in (*sections.items(), (GENERAL, general)):
        if rows:
            lines += [f"\n**{title}**\n", ROW.format(*HEADINGS), ROW.format(*["---"] * len(HEADINGS)), *rows]
    return "\n".join([*lines, ""])


def row(option: click.Option, context: click.Context) -> str:
    flags = ", ".join(f"`{flag}`" for flag in (*option.opts, *option.secondary_opts) if flag.startswith("-"))
    variable = f"`{option.envvar}`" if option.envvar else ""
    shown = _default(option, context)
    return ROW.format(flags, variable, _values(option), _unit(option), shown, _escape(option.help or ""))


def _default(option: click.Option, context: click.Context) -> str:
    if isinstance(option.show_default, str):
        return _escape(option.show_default)
    if option.required:
        return "required"
    default = option.get_default(context, call=False)
    is_shown = isinstance(default, str | int | float | Path) and not (option.is_flag and default is False)
    return f"`{_plain(default)}`" if is_shown and default != "" else ""


def _unit(option: click.Option) -> str:
    """The unit of a number, which is its metavar; empty: none."""
    named = option.metavar or ""
    if not isinstance(option.type, Number) or named in NO_UNIT:
        return ""
    return "MiB" if named == "MIB" else named.lower()


def _values(option: click.Option) -> str:
    kind = option.type
    if option.is_flag:
        return "on or off" if option.secondary_opts else "on"
    if isinstance(kind, Number):
        return " ".join(filter(None, ("whole number" if kind.kind is int else "number", kind.bounds())))
    if isinstance(kind, click.Choice):
        return _escape(", ".join(map(str, kind.choices)))
    return _escape(option.metavar or kind.name)


def _plain(default: object) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return str(default)


def _paragraphs(text: str) -> str:
    """A command's help, with each paragraph on one line."""
    parts = inspect.cleandoc(text).replace("\b", "").split("\n\n")
    return "\n\n".join(" ".join(part.split()) for part in parts)


def _escape(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
