# SPDX-License-Identifier: Apache-2.0
"""Safe text for terminals and logs: without control characters from the wire, and without passwords.

Everything that a command prints or logs passes here: log lines by `PlainFormatter`, errors and results by
`echo`, texts in rich's tables by `plain_cell`.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click
import msgspec

if TYPE_CHECKING:
    from rich.text import Text

_PASSWORD = re.compile(r"(://[^\s:/@]*):\S*@")
_PASSWORD_OF_ADDRESS = re.compile(r"(://[^:/@]*):.*@", re.DOTALL)
INDENT = "  "  # of a traceback's lines, which are no log lines


def plain(text: str) -> str:
    r"""`text` on one line, with unprintable characters escaped as in Python, such as `\x1b` or `
    `.

    Unprintable are control characters, line separators, and marks that change the direction of writing.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else _escaped(character) for character in text)


def without_password(text: str) -> str:
    """`text` with `***` for the passwords of addresses: mqtt://USER:***@HOST."""
    return _PASSWORD.sub(r"\1:***@", text)


def address_without_password(text: str) -> str:
    """Like `without_password` for a text that is one address: an unencoded password in it may have spaces."""
    return _PASSWORD_OF_ADDRESS.sub(r"\1:***@", text)


def plain_cell(text: str, style: str = "") -> Text:
    """One line as a rich Text, without markup."""
    from rich.text import Text

    return Text(plain(text), style)


def echo(text: str, *, err: bool = False) -> None:
    """Prints one line."""
    click.echo(plain(without_password(text)), err=err)


def echo_json(value: Any, indent: int | None = 2) -> None:
    """Prints a value as JSON in ASCII; it may hold dataclasses, and structs of msgspec."""
    click.echo(json.dumps(value, default=msgspec.to_builtins, indent=indent))


class PlainFormatter(logging.Formatter):
    """Formats each log record as one line; tracebacks follow, indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return plain(without_password(super().formatMessage(record)))

    def formatException(self, error: Any) -> str:  # noqa: N802
        return _indented(super().formatException(error))


def show_defect(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A `sys.excepthook` that shows the traceback of an uncaught exception."""
    sys.stderr.write(_indented("".join(traceback.format_exception(kind, error, trace)).rstrip()) + "\n")


def _indented(lines: str) -> str:
    return "\n".join(INDENT + plain(without_password(line)) for line in lines.split("\n"))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
