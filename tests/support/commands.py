# SPDX-License-Identifier: Apache-2.0
"""Runs a `splitee` command in this process, as far as a user sees it."""

from __future__ import annotations

import pytest

from splitee.cli.main import main


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code and the one line that a `splitee` command ends with."""
    with pytest.raises(SystemExit) as leave:
        main(list(arguments))
    said = capsys.readouterr().err.strip().splitlines()
    assert not any("Traceback" in line for line in said)
    return int(leave.value.code or 0), said[-1] if said else ""
