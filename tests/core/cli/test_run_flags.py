# SPDX-License-Identifier: Apache-2.0
"""A setting of a run is declared once, in RunSpec, and refused by the name that the user gave."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
import pytest
from click.testing import CliRunner, Result

from splitee.cli.bounds import Number, number, whole
from splitee.cli.flags import option_group
from splitee.cli.main import main
from splitee.cli.run_flags import all_settings, build_run_spec, run_setting, run_settings
from splitee.cli.settings import setting, settings_file
from splitee.errors import ConfigError
from splitee.protocol.run_spec import RunSpec

NOT_SET_BY_USERS = {
    "protocol",
    "run",
    "mean",
    "std",
    "round_seconds",
    "window_bytes",
    "class_names",
    "weights",
    "frozen",
    "exit_cuts",
    "settled",
    "fused",
}


@click.command()
@settings_file
@run_settings("threshold", "batch_size", "learning_rate", "steps", "order", "balanced_loss")
def command(**settings: object) -> None:
    """Prints the run's specification that its settings give."""
    spec = build_run_spec(network="net", num_classes=2, rounds=1, **settings)
    click.echo(spec.encode())


def run(*arguments: str, **variables: str) -> Result:
    return CliRunner().invoke(command, arguments, env=variables)


def test_each_user_settable_field_of_a_run_is_declared_with_help() -> None:
    assert set(RunSpec.__struct_fields__) - set(all_settings()) == NOT_SET_BY_USERS
    assert all(setting.help for setting in all_settings().values())


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--threshold", "2", "between 0 and 1"),
        ("--threshold", "nan", "a number between 0 and 1"),
        ("--threshold", "high", "a number between 0 and 1"),
        ("--batch-size", "1", "from 2 to 4096"),
        ("--batch-size", "2.5", "a whole number from 2 to 4096"),
        ("--learning-rate", "0", "more than 0"),
        ("--learning-rate", "inf", "a number more than 0"),
        ("--steps", "-1", "at least 0"),
        ("--steps", "99999999999999999999", f"at most {1 << 62}"),
        ("--steps", "1" + 400 * "0", f"at most {1 << 62}"),
        ("--steps", "time:0", "time: and whole seconds from 1 to 86400, such as time:60"),
        ("--steps", "time:1e3", "time: and whole seconds from 1 to 86400, such as time:60"),
        ("--learning-rate", "1e300", "at most 1000000000"),
        ("--order", "random", "one of step, device"),
    ],
)
def test_wrong_value_is_refused_by_flag_variable_or_key_name(
    tmp_path: Path, flag: str, value: str, words: str
) -> None:
    key = flag.removeprefix("--")
    by_flag = run(f"{flag}={value}")
    assert (by_flag.exit_code, by_flag.output.splitlines()[-1]) == (2, f"Error: {flag} {value}: {words}")
    variable = "SPLITEE_" + key.replace("-", "_").upper()
    assert run(**{variable: value}).output.splitlines()[-1] == f"Error: {variable}={value}: {words}"
    file = tmp_path / "settings.toml"
    file.write_text(f'{key} = "{value}"')
    line = run("--config", str(file)).output.splitlines()[-1]
    assert line == f"Error: {key} = {value} in the settings file: {words}"


def test_valid_settings_reach_the_run_spec(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("batch-size = 8\nthreshold = 0.25\n")
    done = run("--config", str(file), "--threshold", "1", "--balanced-loss", SPLITEE_STEPS="7")
    spec = msgspec.json.decode(done.output.encode(), type=RunSpec)
    assert (spec.batch_size, spec.threshold, spec.steps, spec.balanced_loss) == (8, 1.0, 7, True)
    assert (spec.learning_rate, spec.order) == (0.01, "step")


def test_help_shows_default_and_bounds() -> None:
    assert "[default: 32; from 2 to 4096]" in " ".join(run("--help").output.split())


def test_run_spec_with_a_too_long_network_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="network"):
        build_run_spec(network="n" * 1001, num_classes=2, rounds=1)


def test_command_may_change_the_name_and_default_of_a_run_flag() -> None:
    @click.command()
    @run_setting("batch_size", "--batch", "batch_size", default=16)
    def other(batch_size: int) -> None:
        click.echo(batch_size)

    assert CliRunner().invoke(other, []).output == "16\n"
    assert CliRunner().invoke(other, ["--batch", "1"]).output.splitlines()[-1].endswith("from 2 to 4096")


def test_option_group_reaches_its_command_as_one_argument() -> None:
    def pair(first: int, second: str | None) -> tuple[int, str | None]:
        if first > 9 and second is None:
            raise click.UsageError("give --second too")
        return first, second

    group = option_group(
        "both", pair, setting("--first", type=whole(1), default=1), setting("--second"), title="Both"
    )

    @click.command()
    @group
    @click.option("--third")
    def other(both: tuple[int, str | None], third: str | None) -> None:
        click.echo(f"{both} {third}")

    assert CliRunner().invoke(other, ["--second", "x", "--third", "y"]).output == "(1, 'x') y\n"
    assert "give --second too" in CliRunner().invoke(other, ["--first", "10"]).output


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (whole(), ""),
        (whole(1), "at least 1"),
        (number(most=2), "at most 2"),
        (whole(1, 65535), "from 1 to 65535"),
        (number(0, above=True), "more than 0"),
        (number(0, 1, above=True), "more than 0, at most 1"),
    ],
)
def test_bounds_are_described_in_words(kind: Number, words: str) -> None:
    assert kind.bounds() == words


@pytest.mark.parametrize(
    "text", ["32x32", "2x32x32", "3x7x32", "3x32x513", "3x32x32x32", "3x32", "3xax32", "3x-8x32"]
)
def test_input_has_1_or_3_channels_and_8_to_512_pixels_a_side(text: str) -> None:
    @click.command()
    @run_setting("input_shape")
    def other(input_shape: tuple[int, ...]) -> None:
        click.echo(input_shape)

    assert CliRunner().invoke(other, []).output == "(3, 32, 32)\n"
    assert CliRunner().invoke(other, ["--input", "1X8x512"]).output == "(1, 8, 512)\n"
    refused = CliRunner().invoke(other, ["--input", text])
    words = "channels (1 or 3), height and width (8 to 512 pixels), such as 3x96x96"
    assert (refused.exit_code, refused.output.splitlines()[-1]) == (2, f"Error: --input {text}: {words}")


def test_help_and_config_show_an_input_shape_in_flag_syntax(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["config", "server", "--state", "s"], ["server", "--help"]):
        with pytest.raises(SystemExit):
            main(arguments)
        assert "3x96x96" in capsys.readouterr().out
