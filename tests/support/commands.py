# SPDX-License-Identifier: Apache-2.0
"""Runs a `splitee` command in this process; returns its exit code and last line."""

from __future__ import annotations

import re

import pytest

from splitee.cli.main import main

USAGE = re.compile(r"^Usage: .*?^Try '[^\n]*' for help\.\n\n", re.MULTILINE | re.DOTALL)
LOGGED = re.compile(r"\d\d:\d\d:\d\d [A-Z]+ ")


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code of a `splitee` command, and its only error line or, after success, its last line."""
    with pytest.raises(SystemExit) as exit_info:
        main(list(arguments))
    code, lines = int(exit_info.value.code or 0), capsys.readouterr().err
    return code, refusal(lines) if code else "".join(lines.strip().splitlines()[-1:])


def refusal(stderr: str) -> str:
    """The only line of standard error besides log lines and click's usage."""
    lines = USAGE.sub("", stderr).strip().splitlines()
    lines = [line for line in lines if not LOGGED.match(line)]
    assert len(lines) == 1 and lines[-1] == lines[0], stderr
    return lines[0]
