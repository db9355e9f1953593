"""Child processes: a failure is one clear message with the log's end, and none is left behind."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from splitee.errors import ChildFailed
from splitee_lab.local.processes import Children

DEADLINE = 60.0  # seconds
ADDRESS = "mqtt://127.0.0.1:1"


def wait_until_all_done(children: Children) -> None:
    deadline = time.monotonic() + DEADLINE
    while not children.all_done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def running() -> list[psutil.Process]:
    """The `splitee` commands that this test has started and that have not ended."""
    return [child for child in psutil.Process().children() if "splitee" in child.cmdline()]


def test_a_failed_child_is_named_with_its_exit_code_and_last_words(tmp_path: Path) -> None:
    with Children(tmp_path, {"SPLITEE_BROKER": ADDRESS, "SPLITEE_CONNECT_TIMEOUT": "1"}) as children:
        children.start("patient", ["status", "--connect-timeout", "600"])
        children.start("watcher", ["status"])
        with pytest.raises(ChildFailed) as failed:
            wait_until_all_done(children)
    first, *said = str(failed.value).splitlines()
    assert first.startswith("watcher ended with exit code 3 (no broker answered within --connect-timeout)")
    assert str(tmp_path / "watcher.log") in first
    assert said[-1].startswith("  splitee: no broker at mqtt://127.0.0.1:1 within 1 s")
    assert running() == []


def test_children_that_end_well(tmp_path: Path) -> None:
    with Children(tmp_path, {}) as children:
        children.start("one", ["--version"])
        children.start("two", ["--help"])
        wait_until_all_done(children)
    assert (tmp_path / "one.log").read_text().startswith("splitee, version")


def test_this_sides_variables_are_not_the_childrens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITEE_FLEET", "not a name!")
    monkeypatch.setenv("SPLITEE_CONFIG", "/nowhere")
    with Children(tmp_path, {"SPLITEE_BROKER": ADDRESS}) as children:
        children.start("config", ["config", "status"])
        wait_until_all_done(children)
    shown = (tmp_path / "config.log").read_text()
    assert "not a name!" not in shown
    assert ADDRESS in shown


def test_a_killed_child_is_named_by_its_signal(tmp_path: Path) -> None:
    with Children(tmp_path, {}) as children:
        children.start("status", ["status", "--broker", ADDRESS]).process.kill()
        with pytest.raises(ChildFailed, match="status was ended by SIGKILL"):
            wait_until_all_done(children)
