# SPDX-License-Identifier: Apache-2.0
"""Settings: a flag beats a variable, a variable beats the settings file, and that beats the default."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import pytest
from click.testing import CliRunner

from splitee.cli.bounds import whole
from splitee.cli.settings import read_settings, renamed, setting, settings_file
from splitee.commands.status import status
from splitee.errors import ConfigError


@click.command()
@settings_file
@setting("--id", "device", default="default-id")
@setting("--batch-size", type=click.IntRange(min=2), default=32)
@setting("--fresh/--keep", default=False)
@setting("-r", "--rounds", type=int, default=1)
def command(**values: Any) -> None:
    click.echo(" ".join(f"{name}={value}" for name, value in sorted(values.items())))


def run(*flags: str, file: str | bytes | None = None, **variables: str) -> str:
    """The output of the command; its exception is raised."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "fleet.toml")
        if file is not None:
            path.write_bytes(file.encode() if isinstance(file, str) else file)
            flags = (*flags, "--config", str(path))
        result = CliRunner(env=variables).invoke(command, flags, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.output.strip()


def test_defaults_apply_without_settings() -> None:
    assert run() == "batch_size=32 device=default-id fresh=False rounds=1"


@pytest.mark.parametrize(
    ("flags", "variables", "file", "expected"),
    [
        ((), {}, None, 32),
        ((), {}, "batch-size = 4", 4),
        ((), {}, "batch_size = 4", 4),
        ((), {"SPLITEE_BATCH_SIZE": "8"}, None, 8),
        ((), {"SPLITEE_BATCH_SIZE": "8"}, "batch-size = 4", 8),
        (("--batch-size", "16"), {}, "batch-size = 4", 16),
        (("--batch-size", "16"), {"SPLITEE_BATCH_SIZE": "8"}, None, 16),
        (("--batch-size", "16"), {"SPLITEE_BATCH_SIZE": "8"}, "batch-size = 4", 16),
        ((), {"SPLITEE_BATCH_SIZE": ""}, "batch-size = 4", 4),
    ],
)
def test_setting_is_taken_from_flag_then_variable_then_file(
    flags: tuple[str, ...], variables: dict[str, str], file: str | None, expected: int
) -> None:
    assert f"batch_size={expected} " in run(*flags, file=file, **variables)


def test_variable_and_key_of_a_setting_are_named_after_its_flag() -> None:
    """Not after the parameter in the code."""
    assert "device=pi" in run(SPLITEE_ID="pi")
    assert "device=pi" in run(file='id = "pi"')
    assert "device=default-id" in run(SPLITEE_DEVICE="pi")
    with pytest.raises(ConfigError, match="unknown key 'device'; known: batch_size, fresh, id, rounds"):
        run(file='device = "pi"')


def test_switches_and_short_flags_have_variables_and_keys() -> None:
    assert "fresh=True" in run(file="fresh = true")
    assert "fresh=True" in run(SPLITEE_FRESH="1")
    assert "fresh=False" in run("--keep", file="fresh = true")
    assert "rounds=3" in run(SPLITEE_ROUNDS="3")
    assert "rounds=3" in run(file="rounds = 3")


@pytest.mark.parametrize("key", ["batchsize", "config", "help", "server.rounds", '"batch size"', '""'])
def test_unknown_key_is_refused_in_one_line_with_suggestions(key: str) -> None:
    with pytest.raises(
        ConfigError, match=r"settings file .*fleet.toml: unknown key .*; (known: batch_size|did you mean)"
    ) as refused:
        run(file=f"{key} = 1")
    assert "\n" not in str(refused.value)


def test_settings_of_a_device_are_refused_by_a_command_without_id(tmp_path: Path) -> None:
    (tmp_path / "device.toml").write_text('id = "pi-1"\nfleet = "barn"\n')
    with pytest.raises(ConfigError, match=r"device.toml is of device 'pi-1', and this command has no --id"):
        read_settings(status, tmp_path / "device.toml")


@pytest.mark.parametrize("file", ["batch-size 4", "a = 1\na = 2", "[", b"\xff\xfe", b"\x00"], ids=repr)
def test_file_that_is_not_toml_is_named_in_one_line(file: str | bytes) -> None:
    with pytest.raises(ConfigError, match=r"settings file .*fleet.toml is not TOML") as refused:
        run(file=file)
    assert "\n" not in str(refused.value)


def test_settings_file_that_is_missing_or_a_folder_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ConfigError, match=f"settings file {path}: "):
            run("--config", str(path))


def test_settings_file_may_be_given_by_a_variable(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text("rounds = 7")
    assert "rounds=7" in run(SPLITEE_CONFIG=str(path))


@pytest.mark.parametrize("value", ["1", '"many"', "1.5", "1.5e400", "nan", "true"])
def test_invalid_value_is_refused_with_the_name_of_its_flag(value: str) -> None:
    with pytest.raises(click.BadParameter) as refused:
        run(file=f"batch-size = {value}")
    assert "--batch-size" in refused.value.format_message()


@pytest.mark.parametrize("value", ["[1, 2]", "1979-05-27", "{ a = 1 }"])
def test_list_date_or_table_as_a_value_is_refused_with_its_key(value: str) -> None:
    with pytest.raises(ConfigError, match=r"fleet\.toml: batch-size takes one"):
        run(file=f"batch-size = {value}")


@click.command()
@settings_file
@setting("--feature-memory", type=whole(1), default=1024)
@renamed("--memory", "--feature-memory", type=whole(1))
def with_former(feature_memory: int) -> None:
    click.echo(feature_memory)


@pytest.mark.parametrize(
    ("flags", "variables", "file", "expected", "said"),
    [
        ((), {}, "", 1024, ""),
        (("--memory", "5"), {}, "", 5, "--memory 5"),
        ((), {"SPLITEE_MEMORY": "5"}, "", 5, "SPLITEE_MEMORY=5"),
        ((), {}, "memory = 5", 5, "memory = 5 in the settings file"),
        (("--feature-memory", "7", "--memory", "5"), {}, "", 7, "--memory 5"),
        ((), {"SPLITEE_FEATURE_MEMORY": "7", "SPLITEE_MEMORY": "5"}, "", 7, "SPLITEE_MEMORY=5"),
        ((), {}, "feature-memory = 7", 7, ""),
        ((), {}, "feature-memory = 7\nmemory = 5", 7, "memory = 5 in the settings file"),
        (("--memory", "5"), {}, "feature-memory = 7", 5, "--memory 5"),
    ],
)
def test_former_name_of_a_setting_works_and_logs_the_new_name(
    flags: tuple[str, ...],
    variables: dict[str, str],
    file: str,
    expected: int,
    said: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "fleet.toml").write_text(file)
    given = (*flags, "--config", str(tmp_path / "fleet.toml"))
    result = CliRunner(env=variables).invoke(with_former, given, standalone_mode=False)
    assert (result.exception, result.output) == (None, f"{expected}\n")
    lines = [f"{said}: this setting is called --feature-memory now"] if said else []
    assert [record.getMessage() for record in caplog.records] == lines
    assert " --memory" not in CliRunner().invoke(with_former, ["--help"]).output.replace(
        "--feature-memory", ""
    )
