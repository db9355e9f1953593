# SPDX-License-Identifier: Apache-2.0
"""Writes docs/reference/exit-codes.md: the meaning of each exit code of `splitee`, from the code."""

from __future__ import annotations

from pathlib import Path

from protocol_page import escape, table

from splitee.errors import ExitCode

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "exit-codes.md"
HEAD = """# Exit codes

Made by `make docs` from `splitee.errors.ExitCode`. Every `splitee` command ends with one of these codes.
If the code is not 0, the last line on standard error says what was expected, what came, and what to do.

systemd restarts a service 15 seconds after any failure, except after the codes that are marked `no`: a
restart cannot fix their cause. [The service on a device](../how-to/service.md) says more.
[Troubleshooting](../troubleshooting.md) lists symptoms with their causes.

"""


def page() -> str:
    """The page's text."""
    rows = [(str(code.value), code.name, escape(code.help), started_again(code)) for code in ExitCode]
    return HEAD + table(("code", "name", "meaning", "started again"), rows)


def started_again(code: ExitCode) -> str:
    """Whether systemd restarts a service that has ended with this code."""
    if code is ExitCode.OK:
        return "-"
    return "no" if code.is_final else "yes"
