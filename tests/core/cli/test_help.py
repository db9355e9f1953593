# SPDX-License-Identifier: Apache-2.0
"""What every command's help has in common, and that mistakes are reported before anything heavy loads."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import click
import pytest
from commands import call

from splitee.cli.bounds import CountOrAuto, Number, OutOfBounds
from splitee.cli.command import GENERAL, Command, Option
from splitee.errors import ExitCode
from splitee_lab.local.forked import without_settings

MOST_CPU = 1.0  # seconds; 0.3 on a machine at rest, and 2 with torch
HEAVY = ("torch", "torchvision", "matplotlib", "pyarrow", "onnxruntime")


def every_command() -> Iterator[tuple[str, click.Command]]:
    for entry in entry_points(group="splitee.commands"):
        command = entry.load()
        if isinstance(command, click.Group):
            yield from ((f"{entry.name} {name}", part) for name, part in command.commands.items())
        elif entry.name != "config":  # it takes the flags of another command
            yield entry.name, command


COMMANDS = dict(every_command())


@pytest.mark.parametrize("name", COMMANDS)
def test_each_option_is_in_a_section_and_its_help_stands_alone(name: str) -> None:
    command = COMMANDS[name]
    assert isinstance(command, Command)
    options = [one for one in command.params if isinstance(one, click.Option) and not one.hidden]
    for option in options:
        assert isinstance(option, Option), option.name
        assert option.help and option.help[0].isupper() and option.help.endswith("."), option.name
        assert not option.help.startswith(("Of ", "For ", "That ", "And ", "In ", "Between ", "To ")), (
            option.name
        )
    general = {one.name for one in options if isinstance(one, Option) and one.section == GENERAL}
    assert general <= {"config", "verbose", "quiet"}


@pytest.mark.parametrize("digits", [20, 400, 5000])
@pytest.mark.parametrize("name", COMMANDS)
def test_no_number_is_taken_that_would_overflow(name: str, digits: int) -> None:
    context, value = click.Context(COMMANDS[name], info_name=name), digits * "9"
    numbers = [one for one in COMMANDS[name].params if isinstance(one.type, Number | CountOrAuto)]
    for option in numbers:
        with pytest.raises(OutOfBounds, match=f"{value}: "):
            option.type_cast_value(context, value)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_the_general_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with click.Context(COMMANDS[name], info_name=name) as context:
        text = COMMANDS[name].get_help(context)
    assert "\nOptions:" not in text
    assert "--help" in text.rpartition(f"\n{GENERAL}:")[2]
    has_settings = any(one.name == "config" for one in COMMANDS[name].params)
    assert ("--config FILE" in text.rpartition(f"\n{GENERAL}:")[2]) == has_settings


@pytest.mark.parametrize(
    "name",
    ["device", "server", "infer", "serve", "release", "demo", "simulate", "profile", "predict", "export"],
)
def test_long_running_commands_have_verbose_and_quiet(name: str) -> None:
    assert {"verbose", "quiet"} <= {one.name for one in COMMANDS[name].params}


@pytest.mark.parametrize("arguments", [f"{name} --nonsense" for name in COMMANDS] + ["device --cut x"])
def test_wrong_flag_is_reported_before_heavy_packages_load(arguments: str, tmp_path: Path) -> None:
    """A process of its own prints what it has imported, and its CPU time is measured."""
    code = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print([one for one in {HEAVY!r} if one in sys.modules]))\n"
        "from splitee.cli.main import main\n"
        "main(sys.argv[1:])"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments.split()],
        cwd=tmp_path,
        env=without_settings(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == ExitCode.CONFIG
    assert done.stdout == "[]\n"
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < MOST_CPU


SERVER = ("server", "--state", "s")
DEVICE = ("device", "--id", "pi", "--state", "s", "--data", "builtin:fashion-mnist")
WAVES = (*SERVER, "--strategy", "averaging", "--trunk-momentum", "dropped", "--resident", "8")
SIMULATE = ("simulate", "--out", "o")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((*SERVER, "--quorum", "5", "--missing", "skip"), "--quorum 5 --devices 3: no round could"),
        ((*SERVER, "--quorum", "2"), "--quorum does nothing without --missing skip: give both, or neither"),
        ((*SERVER, "--release-waves", "1,0"), "--release-waves 1,0: '0' names no device; expected counts"),
        ((*SERVER, "--deadline-floor", "2"), "--deadline-floor does nothing without --missing skip"),
        ((*SERVER, "--metrics-bind", "::"), "--metrics-bind does nothing without --metrics-port"),
        ((*SERVER, "--ca", "x.crt"), "--ca is for TLS, and mqtt://127.0.0.1:1883 has none"),
        (
            (*SERVER, "--order", "device", "--strategy", "averaging"),
            "--order does nothing without --strategy",
        ),
        (
            (*SERVER, "--aggregation-every", "2"),
            "--aggregation-every does nothing without --strategy",
        ),
        (
            (*SERVER, "--trunk-momentum", "dropped"),
            "--trunk-momentum does nothing without --strategy averaging",
        ),
        ((*SERVER, "--resident", "8"), "--resident 8 does nothing without --strategy averaging"),
        (
            (*SERVER, "--strategy", "averaging", "--resident", "8"),
            "--resident 8 needs --trunk-momentum dropped, this is kept: all devices' trunks",
        ),
        (
            (*WAVES, "--average", "median"),
            "--resident 8 needs --average mean, this is median: all devices' trunks",
        ),
        ((*WAVES, "--aggregation-every", "2"), "--resident 8 needs --aggregation-every 0, this is 2"),
        ((*WAVES, "--largest-share", "0.5"), "--resident 8 needs --largest-share 1, this is 0.5"),
        ((*WAVES, "--clip-updates", "3"), "--resident 8 needs --clip-updates 0, this is 3"),
        (
            (*SERVER, "--deep-supervision", "1", "--exits", "own"),
            "--deep-supervision does nothing",
        ),
        (
            (*SERVER, "--server-momentum", "0.5", "--client-averaging", "none"),
            "--server-momentum does nothing without --client-averaging layerwise: give both, or neither",
        ),
        ((*DEVICE, "--every", "5"), "--every does nothing without --camera or --stdin"),
        (
            (*DEVICE, "--watch", "x", "--stdin"),
            "give one of --watch FOLDER, --camera and --stdin, not --watch FOLDER and --stdin",
        ),
        (
            (*DEVICE, "--watch", "x", "--on-topic", "own"),
            "--on-topic does nothing without --camera or --stdin",
        ),
        ((*DEVICE, "--stdin", "--on-payload", "ON"), "--on-payload does nothing without --on-topic"),
        ((*DEVICE, "--stdin", "--on-topic", "motion/+"), "'motion/+': expected one topic, without + and #"),
        ((*DEVICE, "--stdin", "--watch-poll", "5"), "--watch-poll does nothing without --watch"),
        ((*DEVICE, "--on-change", "0.1"), "--on-change does nothing without --watch, --camera or --stdin"),
        (
            (*DEVICE, "--cut", "3", "--prefer", "deepest"),
            "--prefer does nothing without --cut auto or --adapt",
        ),
        (
            (*DEVICE, "--test", "x", "--holdout", "0.2"),
            "--holdout is a share of --data, and --test is held out",
        ),
        ((*DEVICE, "--holdout", "1"), "--holdout 1: more than 0, less than 1"),
        ((*DEVICE, "--cut", "0"), "--cut 0: auto, or the number of a stage from 1 on"),
        ((*DEVICE, "-v", "-q"), "--verbose and --quiet: give one of them"),
        (("predict", "--model", "m", "--timeout", "3", "x.jpg"), "--timeout does nothing without --broker"),
        (("export", "--state", "s", "--out", "o", "--max-int8-drop", "0.1"), "--max-int8-drop does nothing"),
        (
            (*SIMULATE, "--cuts", "1,2,3", "--clients", "2"),
            "--cuts 1,2,3 --clients 2: more cuts than clients",
        ),
        ((*SIMULATE, "--strategy", "averging"), "with commas; did you mean averaging?"),
        ((*SIMULATE, "--hostile", "1:flip-labls"), "got '1:flip-labls'; did you mean flip-labels?"),
        ((*SIMULATE, "--seeds", "1,x"), "--seeds 1,x: whole numbers with commas, such as 1,2,3"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_invalid_or_contradictory_settings_are_refused_with_a_reason(
    arguments: tuple[str, ...],
    line: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = call(capsys, *arguments)
    assert (code, line in said) == (ExitCode.CONFIG, True), said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("splitee", "de"), {"demo", "device"}),
        (("splitee", "server", "--cod"), {"--codec"}),
        (("splitee", "server", "--codec", "fp16"), {"fp16", "fp16+zstd"}),
        (("splitee", "broker", "ren"), {"renew"}),
        (("splitee", "config", "stat"), {"status"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bash_completion_works_with_the_documented_line(words: tuple[str, ...], expected: set[str]) -> None:
    script = (
        'eval "$(_SPLITEE_COMPLETE=bash_source splitee)"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        '_splitee_completion splitee; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script, "bash", *words],
        env={**without_settings(), "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert set(done.stdout.split()) == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_is_printed_for_each_documented_shell(shell: str) -> None:
    settings = (Path(__file__).parents[3] / "docs" / "reference" / "commands.md").read_text()
    assert f"_SPLITEE_COMPLETE={shell}_source splitee" in settings
    done = subprocess.run(
        [str(Path(sys.executable).parent / "splitee")],
        env={**without_settings(), "_SPLITEE_COMPLETE": f"{shell}_source"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "_SPLITEE_COMPLETE" in done.stdout
