# SPDX-License-Identifier: Apache-2.0
"""`splitee config`: each setting's value, and whether a flag, a variable, a file or the default gave it."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from splitee.cli.main import splitee
from splitee.errors import ConfigError


def config(*arguments: str, **variables: str) -> dict[str, tuple[str, str]]:
    """{flag: (value, source)} as `splitee config ARGUMENTS` prints them."""
    result = CliRunner(env=variables).invoke(splitee, ["config", *arguments], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    rows = [line.split(maxsplit=1) for line in result.output.splitlines()]
    return {flag: tuple(part.strip() for part in rest.split("  ") if part) for flag, rest in rows}  # type: ignore[misc]


def test_each_setting_is_shown_with_its_source(tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text('fleet = "greenhouse"\nconnect-timeout = 5\nbroker = "mqtt://file"\n')
    shown = config("status", "--once", "--config", str(file), SPLITEE_BROKER="mqtt://variable")
    assert shown["--broker"] == ("mqtt://variable", "SPLITEE_BROKER")
    assert shown["--fleet"] == ("greenhouse", "settings file")
    assert shown["--connect-timeout"] == ("5.0", "settings file")
    assert shown["--once"] == ("yes", "flag")
    assert shown["--username"] == ("(none)", "default")


def test_missing_required_setting_is_shown_as_missing() -> None:
    shown = config("device", "--id", "pi-1")
    assert shown["--id"] == ("pi-1", "flag")
    assert shown["--state"][0] == "(missing: required)"


def test_password_in_an_address_is_masked() -> None:
    for account in ("u:secret", "u:se@cret", "u:se:cr/et", "u:se cret", "u: se@c\tre t"):
        shown = config("status", "--broker", f"mqtt://{account}@h:1")
        assert shown["--broker"][0] == "mqtt://u:***@h:1"
    assert config("status", "--broker", "mqtt://a user:secret@h")["--broker"][0] == "mqtt://a user:***@h"


def test_control_characters_from_a_settings_file_are_escaped(tmp_path: Path) -> None:
    (tmp_path / "device.toml").write_text('fleet = "a\\u001b[2J\\nb"\n')
    shown = config("status", "--config", str(tmp_path / "device.toml"))
    assert shown["--fleet"] == (r"a\x1b[2J\nb", "settings file")


def test_wrong_command_flag_value_or_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown command 'sttus'; did you mean status"):
        config("sttus")
    with pytest.raises(click.NoSuchOption, match="--nonsense"):
        config("status", "--nonsense")
    with pytest.raises(click.BadParameter, match="soon"):
        config("status", "--connect-timeout", "soon")
    file = tmp_path / "fleet.toml"
    file.write_text("flet = 1\n")
    with pytest.raises(ConfigError, match="unknown key 'flet'"):
        config("status", "--config", str(file))


def test_config_without_a_command_shows_its_help() -> None:
    result = CliRunner().invoke(splitee, ["config"], standalone_mode=False)
    assert "splitee config [COMMAND] [FLAGS]" in result.output
