# SPDX-License-Identifier: Apache-2.0
"""Child processes: a failure is one clear message with the log's end, and no process is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from waiting import until

from splitee.errors import ChildFailed
from splitee_lab.local.processes import Children

DEADLINE = 60.0  # seconds
START = """
import sys
import time
from pathlib import Path
from splitee.errors import ChildFailed
from splitee_lab.local.forked import CONTEXT
from splitee_lab.local.processes import Children
CONTEXT.set_forkserver_preload([])
try:
    child = Children(Path(sys.argv[1]), {}).start("patient", sys.argv[2:])
    print(child.process.pid, flush=True)
    child.process.wait()
except ChildFailed as error:
    print(error)
"""
ADDRESS = "mqtt://127.0.0.1:1"


def wait_until_all_done(children: Children) -> None:
    deadline = time.monotonic() + DEADLINE
    while not children.all_done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def running() -> list[psutil.Process]:
    """The `splitee` commands that this test has started and that have not ended."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if child.name() in ("splitee patient", "splitee watcher")]


def test_failed_child_is_reported_with_its_exit_code_and_last_words(tmp_path: Path) -> None:
    with Children(tmp_path, {"SPLITEE_BROKER": ADDRESS, "SPLITEE_CONNECT_TIMEOUT": "1"}) as children:
        children.start("patient", ["status", "--connect-timeout", "600"])
        children.start("watcher", ["status"])
        with pytest.raises(ChildFailed) as failed:
            wait_until_all_done(children)
    first, *lines = str(failed.value).splitlines()
    assert first.startswith("watcher ended with exit code 3 (no broker was reached within --connect-timeout)")
    assert str(tmp_path / "watcher.log") in first
    assert lines[-1].startswith("  splitee: no broker at mqtt://127.0.0.1:1 within 1 s")
    assert running() == []


def test_successful_children_end_without_an_error(tmp_path: Path) -> None:
    with Children(tmp_path, {}) as children:
        children.start("one", ["--version"])
        children.start("two", ["--help"])
        wait_until_all_done(children)
    assert (tmp_path / "one.log").read_text().startswith("splitee, version")


def test_children_do_not_inherit_settings_of_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPLITEE_FLEET", "not a name!")
    monkeypatch.setenv("SPLITEE_CONFIG", "/nowhere")
    with Children(tmp_path, {"SPLITEE_BROKER": ADDRESS}) as children:
        children.start("config", ["config", "status"])
        wait_until_all_done(children)
    shown = (tmp_path / "config.log").read_text()
    assert "not a name!" not in shown
    assert ADDRESS in shown


def test_killed_child_is_reported_with_its_signal(tmp_path: Path) -> None:
    with Children(tmp_path, {}) as children:
        children.start("status", ["status", "--broker", ADDRESS]).process.kill()
        with pytest.raises(ChildFailed, match="status was ended by SIGKILL"):
            wait_until_all_done(children)


def test_failure_to_fork_is_reported_in_one_line(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["long"] * 30)
    deep.mkdir(parents=True)
    command = [sys.executable, "-c", START, str(tmp_path), "--version"]
    output = subprocess.check_output(command, text=True, env={**os.environ, "TMPDIR": str(deep)})
    assert output.startswith("no process can be forked: AF_UNIX path too long")
    assert len(output.splitlines()) == 1


def test_children_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", START, str(tmp_path), "status", "--connect-timeout", "600"]
    with subprocess.Popen([*command, "--broker", ADDRESS], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        forked_by = child.parent()
        parent.kill()
    assert forked_by is not None
    until(lambda: ended(child) and ended(forked_by))


def ended(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
