# SPDX-License-Identifier: Apache-2.0
"""Text from the wire stays plain text in one line: in a log, in a command's output, in a table."""

from __future__ import annotations

import io
import json
import logging
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from splitee.cli.plain_text import PlainFormatter, echo, echo_json, plain, plain_cell, without_password
from splitee.cli.systemd import notify

EVIL = "\x1b[2J\x1b]0;title\x07\x9b31mEVIL\r\n00:00:00 INFO forged\u2028\u202eabc\u200b\ud800\tend"
SHOWN = r"\x1b[2J\x1b]0;title\x07\x9b31mEVIL\r\n00:00:00 INFO forged\u2028\u202eabc\u200b\ud800\tend"


@dataclass(frozen=True)
class Sample:
    name: str


@pytest.fixture
def log() -> tuple[logging.Logger, io.StringIO]:
    """A logger as the command line sets it up, and what it writes."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(PlainFormatter("%(levelname)s %(message)s"))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    return logger, written


def test_unprintable_characters_are_escaped_as_in_python() -> None:
    assert plain(EVIL) == SHOWN
    assert plain("café 猫 🐈 [red]") == "café 猫 🐈 [red]"


@given(st.text())
def test_plain_text_is_one_printable_line_and_idempotent(text: str) -> None:
    assert plain(text).isprintable()
    assert plain(plain(text)) == plain(text)


def test_log_record_with_control_characters_is_one_line(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, written = log
    logger.warning("classes %s", EVIL)
    assert written.getvalue() == f"WARNING classes {SHOWN}\n"


def test_logged_traceback_is_indented_and_printable(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, written = log
    try:
        raise ValueError(EVIL)
    except ValueError:
        logger.exception("defect")
    first, *trace = written.getvalue().removesuffix("\n").split("\n")
    assert first == "ERROR defect"
    assert all(line.startswith("  ") and line.isprintable() for line in trace)
    assert any("forged" in line for line in trace)


def test_uncaught_exception_is_indented_and_printable() -> None:
    """In a real process; the exit code of a defect stays."""
    program = (
        "from splitee.cli import main\n"
        "import sys\n"
        "def fail(*_arguments, **_named): raise ValueError('\\x1b[2J\\n00:00:00 INFO forged')\n"
        "main.splitee = fail\n"
        "main.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert r"ValueError: \x1b[2J" in done.stderr
    assert all(line.startswith("  ") and line.isprintable() for line in done.stderr.splitlines())


def test_echo_escapes_control_characters_on_stdout_and_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    echo(EVIL)
    echo(EVIL, err=True)
    assert capsys.readouterr() == (f"{SHOWN}\n", f"{SHOWN}\n")


def test_echoed_json_is_ascii_and_decodes_to_the_same_value(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"label": EVIL.replace("\ud800", ""), "share": 0.25, "none": None}
    echo_json(value)
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert all(line.isprintable() for line in printed.splitlines())
    assert json.loads(printed) == value


def test_echoed_json_may_hold_structs_and_dataclasses(capsys: pytest.CaptureFixture[str]) -> None:
    class Struct(msgspec.Struct):
        share: float

    echo_json([Struct(0.5), Sample("x")], indent=None)
    assert capsys.readouterr().out == '[{"share": 0.5}, {"name": "x"}]\n'


def test_every_command_prints_by_echo() -> None:
    """Except tables and texts of rich, and a command's own help."""
    printing = re.compile(r"\bclick\.echo\(|(?<!\.)\bprint\(")
    root = Path(__file__).parents[3]
    packages = ("core", "web", "device", "server", "export", "broker_config")
    found = {
        f"{path.name}: {line.strip()}"
        for package in packages
        for path in (root / package).rglob("*.py")
        for line in path.read_text().splitlines()
        if printing.search(line) and path.name not in ("plain_text.py", "healthcheck.py", "trial_worker.py")
    }
    assert found == {"config.py: click.echo(context.get_help())"}


def test_table_cell_is_one_line_without_markup() -> None:
    written = io.StringIO()
    Console(file=written, width=200, force_terminal=True, color_system=None).print(
        plain_cell(EVIL + "[link=http://x]here[/link]")
    )
    assert written.getvalue() == f"{SHOWN}[link=http://x]here[/link]\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("mqtt://pi:secret@hub:1", "mqtt://pi:***@hub:1"),
        ("at mqtts://pi:se:cr@e/t@hub, and", "at mqtts://pi:***@hub, and"),
        ("mqtt://:secret@hub", "mqtt://:***@hub"),
        ("mqtt://pi@hub:1 and x:y@z", "mqtt://pi@hub:1 and x:y@z"),
    ],
)
def test_password_of_an_address_is_masked_in_logs_and_output(
    text: str, shown: str, log: tuple[logging.Logger, io.StringIO], capsys: pytest.CaptureFixture[str]
) -> None:
    assert without_password(text) == shown
    log[0].error("%s", text)
    assert log[1].getvalue() == f"ERROR {shown}\n"
    echo(text)
    assert capsys.readouterr().out == f"{shown}\n"


def test_line_break_in_a_systemd_state_is_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify("READY=1", "STATUS=at\nMAINPID=1")
        assert listener.recv(1000) == b"READY=1\nSTATUS=at\\nMAINPID=1"
