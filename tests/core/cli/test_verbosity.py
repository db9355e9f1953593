# SPDX-License-Identifier: Apache-2.0
"""`-v` and `-q`: what is logged under each, and that a command leaves the levels as they were."""

from __future__ import annotations

import logging

import click
import pytest
from click.testing import CliRunner

from splitee.cli.command import Command
from splitee.cli.verbosity import is_quiet, log_options

LOG = logging.getLogger("splitee_lab.test")


def logged(usual: int, *flags: str, caplog: pytest.LogCaptureFixture, **packages: int) -> list[str]:
    @click.command(cls=Command)
    @log_options(usual, **packages)
    def command() -> None:
        LOG.debug("debug")
        LOG.info("info")
        LOG.warning("warning")
        click.echo(f"quiet {is_quiet()}")

    before = logging.getLogger("splitee_lab").level
    caplog.clear()
    result = CliRunner().invoke(command, flags, standalone_mode=False)
    assert result.exception is None
    assert result.output == f"quiet {'-q' in flags or '--quiet' in flags}\n"
    assert logging.getLogger("splitee_lab").level == before
    return [record.getMessage() for record in caplog.records]


def test_verbose_and_quiet_set_the_logged_levels(caplog: pytest.LogCaptureFixture) -> None:
    assert logged(logging.INFO, caplog=caplog) == ["info", "warning"]
    assert logged(logging.INFO, "-v", caplog=caplog) == ["debug", "info", "warning"]
    assert logged(logging.INFO, "-q", caplog=caplog) == ["warning"]
    assert logged(logging.WARNING, caplog=caplog) == ["warning"]
    assert logged(logging.WARNING, "--verbose", caplog=caplog) == ["info", "warning"]
    assert logged(logging.WARNING, "--quiet", caplog=caplog) == ["warning"]
    assert logged(logging.INFO, caplog=caplog, splitee_lab=logging.WARNING) == ["warning"]
