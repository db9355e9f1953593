# SPDX-License-Identifier: Apache-2.0
"""How a broker's password reaches a command, and that nothing shows it."""

from __future__ import annotations

import logging
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from splitee.cli.link_options import link_options
from splitee.cli.settings import settings_file
from splitee.errors import ConfigError
from splitee.mqtt.address import BrokerAddress
from splitee.mqtt.options import LinkOptions

WORD = "secret"
URL = f"mqtt://pi:{WORD}@hub"


@click.command()
@settings_file
@link_options
@click.pass_context
def command(context: click.Context, link: LinkOptions) -> None:
    context.obj.append(link.address)


def address(*flags: str, **variables: str) -> BrokerAddress:
    found: list[BrokerAddress] = []
    result = CliRunner(env=variables).invoke(command, flags, obj=found, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return found[0]


def test_password_from_a_file_is_taken_without_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "password").write_text(f"{WORD}\n")
    file = ("--password-file", str(tmp_path / "password"))
    wanted = BrokerAddress("hub", 1883, username="pi", password=WORD)
    assert address("--broker", "mqtt://pi@hub", *file) == wanted
    assert address("--broker", "mqtt://hub", "--username", "pi", *file) == wanted
    assert caplog.records == []


def test_password_file_without_an_account_is_refused(tmp_path: Path) -> None:
    """MQTT's client sends no password without a user name: the broker would report a wrong account."""
    file = tmp_path / "password"
    file.write_text(f"{WORD}\n")
    with pytest.raises(ConfigError, match="--password-file does nothing without --username"):
        address("--password-file", str(file))
    assert address(SPLITEE_PASSWORD_FILE=str(file)).username is None


def test_password_in_a_flag_is_taken_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert address("--broker", URL).password == WORD
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    for way in ("--password-file", "SPLITEE_BROKER", "settings file"):
        assert way in record.getMessage()
    assert WORD not in record.getMessage()


def test_password_from_settings_file_or_variable_gives_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "fleet.toml").write_text(f'broker = "{URL}"\n')
    assert address("--config", str(tmp_path / "fleet.toml")).password == WORD
    assert address(SPLITEE_BROKER=URL).password == WORD
    assert caplog.records == []


@pytest.mark.parametrize("content", [None, "", "\nsecret"])
def test_password_file_without_a_password_is_named_in_the_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "password").write_text(content)
    with pytest.raises(ConfigError, match=r"--password-file .*password: "):
        address("--password-file", str(tmp_path / "password"))
