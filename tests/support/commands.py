# SPDX-License-Identifier: Apache-2.0
"""Runs a `splitee` command in this process, as far as a user sees it."""

from __future__ import annotations

import re

import pytest

from splitee.cli.main import main

USAGE = re.compile(r"^Usage: .*?^Try '[^\n]*' for help\.\n\n", re.MULTILINE | re.DOTALL)
LOGGED = re.compile(r"\d\d:\d\d:\d\d [A-Z]+ ")


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code and the one line that a `splitee` command ends with."""
    with pytest.raises(SystemExit) as leave:
        main(list(arguments))
    code, lines = int(leave.value.code or 0), capsys.readouterr().err
    return code, refusal(lines) if code else "".join(lines.strip().splitlines()[-1:])


def refusal(stderr: str) -> str:
    """The only line of a refusal, besides log lines before it and click's usage."""
    lines = USAGE.sub("", stderr).strip().splitlines()
    lines = [line for line in lines if not LOGGED.match(line)]
    assert len(lines) == 1 and lines[-1] == lines[0], stderr
    return lines[0]
