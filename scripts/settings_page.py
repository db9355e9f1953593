"""Writes docs/reference/commands.md: every command and its settings, read from the commands themselves."""

from __future__ import annotations

import inspect
from importlib.metadata import entry_points
from pathlib import Path

import click

from splitee.cli.bounds import Number

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "commands.md"
HEAD = """# Commands and settings

Made by `make docs` from the commands themselves. Each setting is a flag, a `SPLITEE_*` variable where one is
named, and a key of the settings file (`--config FILE`, TOML: the flag without its dashes).
Flag > variable > file > default. `splitee config COMMAND` prints the settings in force, and where each comes
from.
"""
ROW = "| {} | {} | {} | {} | {} | {} |"
HEADINGS = ("flag", "variable", "takes", "unit", "default", "for")
NO_UNIT = ("COUNT", "CUT", "PORT")  # metavars of numbers that name a thing


def page() -> str:
    """The page's text."""
    entries = sorted(entry_points(group="splitee.commands"), key=lambda entry: entry.name)
    tables = [table(entry.name, entry.load()) for entry in entries]
    return HEAD + "".join(tables)


def table(name: str, command: click.Command) -> str:
    """One command's settings; of a group, those of each of its commands."""
    if isinstance(command, click.Group):
        return "".join(table(f"{name} {part}", command.commands[part]) for part in sorted(command.commands))
    context = click.Context(command, info_name=name)
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    rows = [row(option, context) for option in sorted(options, key=lambda option: option.name or "")]
    if not rows:
        return ""
    usage = " ".join([f"splitee {name}", *command.collect_usage_pieces(context)])
    about = [f"\n## splitee {name}\n", f"    {usage}\n", f"{_paragraphs(command.help or '')}\n"]
    return "\n".join([*about, ROW.format(*HEADINGS), ROW.format(*["---"] * len(HEADINGS)), *rows, ""])


def row(option: click.Option, context: click.Context) -> str:
    flags = ", ".join(f"`{flag}`" for flag in (*option.opts, *option.secondary_opts) if flag.startswith("-"))
    variable = f"`{option.envvar}`" if option.envvar else ""
    default = option.get_default(context, call=False)
    known = isinstance(default, str | int | float | Path) and not (option.is_flag and default is False)
    shown = f"`{_plain(default)}`" if known else ""
    return ROW.format(flags, variable, _takes(option), _unit(option), shown, _escape(option.help or ""))


def _unit(option: click.Option) -> str:
    """Of a number, as its metavar names it."""
    named = option.metavar or ""
    if not isinstance(option.type, Number) or named in NO_UNIT:
        return ""
    return "MiB" if named == "MIB" else named.lower()


def _takes(option: click.Option) -> str:
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
    """A command's help, a paragraph a line."""
    parts = inspect.cleandoc(text).replace("\b", "").split("\n\n")
    return "\n\n".join(" ".join(part.split()) for part in parts)


def _escape(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
