# SPDX-License-Identifier: Apache-2.0
"""The command line itself: exit codes, one line an error, commands that load nothing they do not need."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from splitee import __version__
from splitee.cli.main import EXTRAS, SUMMARIES
from splitee.errors import ExitCode, SpliteeError
from splitee_lab.local.forked import without_settings

BLOCKER = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
"""


def splitee(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own; stray SPLITEE_* variables are left out."""
    return subprocess.run(
        [sys.executable, "-m", "splitee", *arguments],
        cwd=cwd,
        env={**without_settings(), **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def without(folder: Path, *packages: str) -> dict[str, str]:
    """Variables under which `packages` cannot be imported, as on a machine that lacks them."""
    (folder / "sitecustomize.py").write_text(BLOCKER.format(blocked=set(packages)))
    return {"PYTHONPATH": str(folder)}


def test_version_and_help_succeed(tmp_path: Path) -> None:
    assert splitee("--version", cwd=tmp_path).stdout == f"splitee, version {__version__}\n"
    done = splitee("--help", cwd=tmp_path)
    assert done.returncode == ExitCode.OK
    shown = " ".join(done.stdout.split())  # however wide the terminal is
    assert all(f" {name} {summary}" in shown for name, summary in SUMMARIES.items())
    assert done.stderr == ""


@pytest.mark.parametrize("closed", [(0,), (0, 1, 2)])
def test_closed_standard_streams_are_replaced_by_dev_null(closed: tuple[int, ...]) -> None:
    """With `splitee infer <&-` the trial of a model got the manifest as its standard input."""
    code = f"""
import os
shows = os.dup(1)
for number in {closed}: os.close(number)
from splitee.cli.main import main
try:
    main(["--version"])
finally:
    os.write(shows, " ".join(os.readlink(f"/proc/self/fd/{{number}}") for number in {closed}).encode())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == " ".join([os.devnull] * len(closed)), done.stderr


@pytest.mark.parametrize("group", [(), ("broker",)], ids=["splitee", "broker"])
def test_command_group_without_a_subcommand_shows_its_help(group: tuple[str, ...], tmp_path: Path) -> None:
    bare, with_help = splitee(*group, cwd=tmp_path), splitee(*group, "--help", cwd=tmp_path)
    assert (bare.returncode, bare.stdout, bare.stderr) == (ExitCode.CONFIG, "", with_help.stdout)
    assert "..." not in with_help.stdout.replace("[ARGS]...", "")


def test_every_command_has_a_summary() -> None:
    assert {entry.name for entry in entry_points(group="splitee.commands")} == set(SUMMARIES)


def test_each_error_has_its_own_exit_code_and_each_code_has_help() -> None:
    def below(kind: type[SpliteeError]) -> list[type[SpliteeError]]:
        return [found for child in kind.__subclasses__() for found in (child, *below(child))]

    named = [kind.exit_code for kind in below(SpliteeError) if "exit_code" in vars(kind)]
    assert len(set(named)) == len(named)
    assert set(named) == set(ExitCode) - {ExitCode.OK, ExitCode.INTERNAL}
    assert all(code.help for code in ExitCode)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nope"], "Error: No such command 'nope'. Known: broker, calibrate, "),
        (["sever"], "Error: No such command 'sever'. Did you mean 'server'?"),
        (["broker", "innit"], "Error: No such command 'innit'. Did you mean 'init'?"),
        (["status", "--flete", "x"], "Error: No such option '--flete'. "),
        (["status", "--no\nsense"], r"Error: No such option '--no\nsense'."),
        (["server", "--codec", "fp61"], "Error: --codec fp61: one of fp32, fp16, "),
        (["config", "sttus"], "splitee: unknown command 'sttus'; did you mean status?"),
        (["--nope"], "Error: No such option '--nope'."),
        (["config", "nope"], "splitee: unknown command 'nope'; known: "),
        (["status", "--fleet", "a/b"], "splitee: --fleet 'a/b': expected 1 to 64 letters"),
        (["status", "--config", "none.toml"], "splitee: settings file none.toml: No such file or directory"),
        (["status", "mqtt://pi:secret@hub"], "Error: Got unexpected extra argument (mqtt://pi:***@hub)"),
        (["status", "--connect-timeout", "soon"], "Error: --connect-timeout soon: a number at least 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_call_ends_with_its_error_line_and_exit_code_2(
    arguments: list[str], line: str, tmp_path: Path
) -> None:
    done = splitee(*arguments, cwd=tmp_path)
    assert done.returncode == ExitCode.CONFIG
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith(line)
    assert "Traceback" not in done.stderr


def test_unknown_key_of_the_settings_file_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "fleet.toml").write_text('fleeet = "home"\n')
    done = splitee("status", "--config", "fleet.toml", cwd=tmp_path)
    assert done.returncode == ExitCode.CONFIG
    assert done.stderr.startswith(
        "splitee: settings file fleet.toml: unknown key 'fleeet'; did you mean fleet?"
    )
    assert len(done.stderr.splitlines()) == 1


def test_unreachable_broker_gives_an_error_line_and_exit_code_3(tmp_path: Path) -> None:
    done = splitee("status", "--broker", "mqtt://127.0.0.1:1", "--connect-timeout", "1", cwd=tmp_path)
    assert done.returncode == ExitCode.UNREACHABLE
    assert done.stderr.splitlines()[-1].startswith("splitee: no broker at mqtt://127.0.0.1:1 within 1 s")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("given", "source"),
    [("flag", "flag"), ("variable", "SPLITEE_FLEET"), ("file", "settings file"), ("", "default")],
)
def test_flag_beats_variable_beats_file_beats_default(given: str, source: str, tmp_path: Path) -> None:
    """Each source is given together with all sources that it beats."""
    order = ["flag", "variable", "file", ""]
    present = order[order.index(given) : -1]
    (tmp_path / "fleet.toml").write_text('fleet = "file"\n')
    flags = ["--fleet", "flag"] if "flag" in present else []
    file = ["--config", "fleet.toml"] if "file" in present else []
    variables = {"SPLITEE_FLEET": "variable"} if "variable" in present else {}
    done = splitee("config", "status", *flags, *file, cwd=tmp_path, **variables)
    assert done.returncode == ExitCode.OK, done.stderr
    (row,) = (line for line in done.stdout.splitlines() if line.startswith("--fleet "))
    assert row.split(None, 2)[1:] == [given or "default", source]


@pytest.mark.parametrize("command", ["cuts", "device", "server", "demo"])
def test_missing_extra_gives_the_pip_command_and_exit_code_12(command: str, tmp_path: Path) -> None:
    """Also where the command finds it missing only while it runs."""
    variables = without(tmp_path, *EXTRAS)
    arguments = {
        "cuts": ["resnet18"],
        "server": ["--state", "state"],
        "device": ["--id", "pi", "--data", "builtin:fashion-mnist", "--state", "state"],
    }
    done = splitee(command, *arguments.get(command, []), cwd=tmp_path, **variables)
    assert done.returncode == ExitCode.EXTRA, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"splitee: `splitee {command}` needs ")
    assert "pip install 'hetero-splitee[" in last
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_base_install_runs_without_the_extras(tmp_path: Path) -> None:
    variables = without(tmp_path, *EXTRAS)
    for arguments in (["--help"], ["config", "status"], ["status", "--help"]):
        done = splitee(*arguments, cwd=tmp_path, **variables)
        assert done.returncode == ExitCode.OK, done.stderr


def test_missing_base_module_is_an_internal_error_that_names_it(tmp_path: Path) -> None:
    """The module is no extra: the installation is broken, and the log is wanted."""
    done = splitee("status", cwd=tmp_path, **without(tmp_path, "paho"))
    assert done.returncode == ExitCode.INTERNAL
    assert "No module named 'paho" in done.stderr
