# SPDX-License-Identifier: Apache-2.0
"""The launcher as a process, and the links: whatever new software does, software that works runs."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import until

from splitee.errors import ExitCode
from splitee_device.upgrade import software as folder
from splitee_device.upgrade.launcher import KILLED, STATE, UNREACHABLE
from splitee_device.upgrade.software import BASE, CURRENT, PREVIOUS, TRIAL, TRIED, Software
from systemd import FakeSystemd

OLD, NEW = "0.1.0-aaaaaaaaaaaa", "0.2.0-bbbbbbbbbbbb"
WITHIN = 1.0  # seconds

# Instead of running splitee, an environment's Python notes that it runs, and then does one of these:
WORKS = "sleep 1000 & wait"
COMES_UP = f'ln -sfn $SPLITEE_RUNS "$SPLITEE_SOFTWARE/{PREVIOUS}"; mv -T "$SPLITEE_SOFTWARE/{TRIED}" ' + (
    f'"$SPLITEE_SOFTWARE/{CURRENT}"; {WORKS}'
)
HANGS = "trap '' TERM; while :; do sleep 0.1; done"
SCRIPT = """#!/bin/sh
echo "$SPLITEE_RUNS $*" >> "$SPLITEE_SOFTWARE/starts"
trap 'echo "$SPLITEE_RUNS stopped" >> "$SPLITEE_SOFTWARE/starts"; exit 0' TERM
{does}
"""


class Device:
    """A device whose environments are scripts."""

    def __init__(self, path: Path) -> None:
        self.software = Software(path / "software")
        self.software.path.mkdir()
        self.log = path / "log"
        self.running: list[subprocess.Popen[bytes]] = []

    def has(self, name: str, does: str) -> None:
        python = self.software.python(name)
        python.parent.mkdir(parents=True)
        python.write_text(SCRIPT.format(does=does))
        python.chmod(0o755)

    def serves(self, name: str, does: str = WORKS) -> None:
        self.has(name, does)
        self.software.point(CURRENT, name)

    def tries(self, name: str, does: str) -> None:
        self.has(name, does)
        self.software.point(TRIAL, name)

    def start(self, *flags: str, **environment: str) -> subprocess.Popen[bytes]:
        module = "splitee_device.upgrade.launcher"
        command = [sys.executable, "-m", module, "--software", str(self.software.path), *flags, "infer"]
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                command, stderr=log, env={**os.environ, **environment}, start_new_session=True
            )
        self.running.append(process)
        return process

    @property
    def starts(self) -> list[str]:
        """The names of the environments that have run, and notes of those that were stopped."""
        try:
            lines = (self.software.path / "starts").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [line.removesuffix(" -P -m splitee infer") for line in lines]

    def await_starts(self, *expected: str) -> None:
        until(lambda: self.starts == [*expected], lambda: (self.starts, self.log.read_text()))


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    made = Device(tmp_path)
    yield made
    for process in made.running:
        if process.poll() is None:
            process.terminate()
            assert process.wait(20) is not None


def test_software_in_service_gets_the_commands_flags_and_sets_the_exit_code(device: Device) -> None:
    device.serves(OLD, "exit 7")
    assert device.start().wait(20) == 7
    assert device.starts == [OLD]
    device.has(NEW, "kill -9 $$")
    device.software.point(CURRENT, NEW)
    assert device.start().wait(20) == KILLED + signal.SIGKILL


def test_launcher_passes_sigterm_to_the_software(device: Device) -> None:
    device.serves(OLD)
    process = device.start()
    device.await_starts(OLD)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert device.starts == [OLD, f"{OLD} stopped"]


def test_installed_software_is_tried_at_once_and_stays_when_it_comes_up(device: Device) -> None:
    device.serves(OLD)
    device.start()
    device.await_starts(OLD)
    device.tries(NEW, COMES_UP)
    device.await_starts(OLD, f"{OLD} stopped", NEW)
    until(lambda: device.software.in_service == NEW)
    assert device.software.target(TRIED) is None
    assert device.software.failure() is None


@pytest.mark.slow(2)
@pytest.mark.parametrize(
    ("does", "reason"),
    [
        (HANGS, "it did not come up within 1 s"),
        ("exit 1", "it ended with exit code 1 before it had come up"),
        ("kill -11 $$", "it ended with exit code 139 before it had come up"),
        (f"exit {ExitCode.CONFIG}", "it ended with exit code 2 before it had come up"),
    ],
    ids=["hangs", "fails", "crashes", "refuses-the-settings"],
)
def test_software_that_does_not_come_up_is_given_up(device: Device, does: str, reason: str) -> None:
    device.serves(OLD)
    device.tries(NEW, does)
    device.start("--within", str(WITHIN))
    until(lambda: device.starts[-1:] == [OLD], device.log.read_text)
    assert device.software.failure() == (NEW, reason)
    assert device.software.target(TRIED) is None
    assert not (device.software.path / NEW).exists(), "it takes no room any more"
    assert f"{NEW} is given up: {reason}; {OLD} runs again" in device.log.read_text()


def test_missing_software_is_given_up(device: Device) -> None:
    device.serves(OLD)
    device.software.point(TRIAL, NEW)
    device.start()
    device.await_starts(OLD)
    assert device.software.failure() == (NEW, "its Python is not there")


def test_trial_interrupted_by_a_kill_is_given_up(device: Device) -> None:
    """As a power cut does, in the minute of the trial."""
    device.serves(OLD)
    device.tries(NEW, WORKS)
    process = device.start("--within", "100")
    device.await_starts(NEW)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(20)
    device.start()
    device.await_starts(NEW, OLD)
    assert device.software.failure() == (NEW, "it was cut off before it had come up")


def test_trial_stopped_by_sigterm_is_repeated_at_the_next_start(device: Device) -> None:
    device.serves(OLD)
    device.tries(NEW, WORKS)
    process = device.start("--within", "100")
    device.await_starts(NEW)
    process.terminate()
    assert process.wait(20) == 0
    assert device.software.target(TRIAL) == NEW
    device.start("--within", "100")
    device.await_starts(NEW, f"{NEW} stopped", NEW)


@pytest.fixture
def port() -> Iterator[int]:
    """A port that takes connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.slow(3)
def test_software_is_not_given_up_while_the_broker_is_unreachable(device: Device, port: int) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # no process listens there
        device.software.note_broker("127.0.0.1", closed.getsockname()[1])
        device.serves(OLD)
        device.tries(NEW, f"exit {UNREACHABLE}")
        assert device.start().wait(20) == UNREACHABLE
        assert device.software.target(TRIAL) == NEW, "it is tried again"
        assert device.software.failure() is None

        device.software.python(NEW).write_text(SCRIPT.format(does=HANGS))
        device.start("--within", "0.2")
        until(lambda: "trying" in device.log.read_text(), device.log.read_text)
        until(lambda: device.starts == [NEW, NEW])
        assert device.software.target(TRIED) == NEW
        device.software.note_broker("127.0.0.1", port)  # the broker is back, and the software still hangs
        until(lambda: device.starts == [NEW, NEW, OLD], device.log.read_text)


def test_base_environment_runs_without_links(device: Device) -> None:
    """The base is this test's own environment, which refuses the command without its settings."""
    assert device.start().wait(60) == ExitCode.CONFIG
    assert device.software.target(CURRENT) is None
    assert (device.software.path / BASE).readlink() == Path(sys.prefix)


def test_base_is_in_service_if_the_current_software_cannot_run(device: Device) -> None:
    """Such as after an upgrade of the system's Python."""
    device.serves(OLD)
    device.software.python(OLD).unlink()
    assert device.software.in_service == BASE


def test_systemd_is_notified_of_a_stop_but_not_of_exchanged_software(device: Device, tmp_path: Path) -> None:
    device.serves(OLD)
    with FakeSystemd(tmp_path / "notify", 60) as systemd:
        process = device.start(**systemd.environment, WATCHDOG_PID="1")
        device.await_starts(OLD)
        device.tries(NEW, COMES_UP)
        until(lambda: device.software.in_service == NEW)
        assert set(systemd.states) == {"WATCHDOG=1"}
        process.terminate()
        process.wait(20)
        until(lambda: systemd.states[-1] == "STOPPING=1")


@pytest.mark.parametrize("flags", [("--within", "0"), ("--within", "soon"), ("--within", "nan")])
def test_wrong_flag_ends_with_the_configuration_exit_code(device: Device, flags: tuple[str, str]) -> None:
    assert device.start(*flags).wait(20) == ExitCode.CONFIG


def test_second_launcher_of_a_folder_is_refused(device: Device) -> None:
    """The second would take the first one's trial for one that was cut off."""
    device.serves(OLD)
    device.tries(NEW, WORKS)
    device.start("--within", "100")
    device.await_starts(NEW)
    assert device.start().wait(20) == ExitCode.STATE
    assert "another splitee-start runs from it" in device.log.read_text().splitlines()[-1]
    assert device.software.target(TRIED) == NEW


def test_invalid_broker_address_counts_as_reachable(device: Device) -> None:
    device.software.note_broker("..", 99999)
    device.serves(OLD)
    device.tries(NEW, HANGS)
    device.start("--within", "0.2")
    until(lambda: device.starts[-1:] == [OLD], device.log.read_text)


def test_unusable_software_folder_is_reported_in_one_line(device: Device, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    process = device.start("--software", str(tmp_path / "file"))
    assert process.wait(20) == STATE == ExitCode.STATE
    assert len(device.log.read_text().splitlines()) == 1


CRASHING = """
import os, sys
from pathlib import Path
from splitee_device.upgrade import software as folder

left = int(sys.argv[3])

CHANGES = "os.rename", "os.symlink", "os.remove", "open"

def crash(event, arguments):
    global left
    if event in CHANGES and str(arguments[0]).startswith(sys.argv[1]):
        left -= 1
        if left < 0:
            os._exit(9)

kept = folder.Software(Path(sys.argv[1]))
sys.addaudithook(crash)
eval(sys.argv[2])
"""
STEPS: dict[str, tuple[str | None, str]] = {  # the link to the new one before, and what runs afterwards
    f"kept.point(folder.TRIAL, {NEW!r})": (None, NEW),
    "kept.move(folder.TRIAL, folder.TRIED)": (TRIAL, OLD),
    "kept.accept_trial()": (TRIED, NEW),
    f"kept.reject_trial({NEW!r}, 'it ended')": (TRIED, OLD),
}


@pytest.mark.slow(6)
@pytest.mark.parametrize("step", STEPS)
def test_power_cut_at_any_moment_leaves_software_that_runs(tmp_path: Path, step: str) -> None:
    """Before each change of a file in turn, until there are no more."""
    link, afterwards = STEPS[step]
    codes = []
    while 0 not in codes:
        (tmp_path / str(len(codes))).mkdir()
        device = Device(tmp_path / str(len(codes)))
        device.serves(OLD)
        device.has(NEW, "exit 0")
        device.software.python(OLD).write_text(SCRIPT.format(does="exit 0"))
        if link is not None:
            device.software.point(link, NEW)
        command = [sys.executable, "-c", CRASHING, str(device.software.path), step, str(len(codes))]
        codes.append(subprocess.run(command, check=False).returncode)
        device.start().wait(20)
        assert device.starts[-1] in (OLD, NEW)
        assert device.software.in_service in (OLD, NEW)
    assert device.starts[0] == afterwards
    assert set(codes) == {0, 9}, "it is cut at least once"


def test_prune_removes_software_that_no_link_names(device: Device) -> None:
    device.serves(OLD)
    device.has(NEW, WORKS)
    (device.software.path / "notes").mkdir()
    device.software.prune()
    assert {path.name for path in device.software.path.iterdir()} == {CURRENT, OLD, "notes"}


def test_prune_is_skipped_while_software_is_being_installed(device: Device) -> None:
    device.has(NEW, WORKS)
    with (device.software.path / folder.LOCK).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        device.software.prune_if_idle()
        assert (device.software.path / NEW).exists()
    device.software.prune_if_idle()
    assert not (device.software.path / NEW).exists()


@pytest.mark.parametrize("target", ["../../etc", "/etc", "..", "notes", "0.1.0-AAAAAAAAAAAA"])
def test_link_that_names_no_software_is_ignored(device: Device, target: str) -> None:
    device.software.point(CURRENT, target)
    assert device.software.target(CURRENT) is None
    assert device.software.in_service == BASE


def test_damaged_failure_and_broker_files_are_ignored(device: Device) -> None:
    for name in (folder.FAILED, folder.BROKER):
        (device.software.path / name).write_bytes(b"\xff\x00[]")
    assert device.software.failure() is None
    assert device.software.broker() is None


def test_child_processes_of_ended_software_are_killed(device: Device) -> None:
    """Such as a camera's program, which cannot be started twice; here a child with its own session."""
    device.serves(OLD)
    left = 'trap "" TERM HUP; while :; do sleep 0.1; done'
    device.tries(NEW, f"setsid sh -c '{left}' & echo $! > $SPLITEE_SOFTWARE/left; exit 1")
    device.start()
    until(lambda: device.starts[-1:] == [OLD], device.log.read_text)
    process = int((device.software.path / "left").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_process_started_before_the_launcher_is_not_killed(device: Device) -> None:
    """As the entry point of a container does."""
    device.serves(OLD, "exit 7")
    left = device.software.path / "left"
    script = f'sleep 1000 & echo $! > {left}; exec "$@"'
    command = [sys.executable, "-m", "splitee_device.upgrade.launcher", "--software", device.software.path]
    process = subprocess.run(["sh", "-c", script, "sh", *map(str, command), "infer"], check=False)
    assert process.returncode == 7
    os.kill(int(left.read_text()), signal.SIGTERM)  # the process still runs


def test_pythonpath_and_pythonhome_are_not_passed_to_the_software(device: Device) -> None:
    device.serves(OLD, 'echo "$PYTHONPATH$PYTHONHOME" > $SPLITEE_SOFTWARE/led; exit 0')
    assert device.start(PYTHONPATH="/elsewhere", PYTHONHOME=sys.base_prefix).wait(20) == 0
    assert (device.software.path / "led").read_text() == "\n"


def test_abort_signal_goes_to_the_software_first_and_ends_the_trial(device: Device) -> None:
    """As by systemd's watchdog: the process shows where it hangs, and no other software is started."""
    device.serves(OLD)
    device.tries(NEW, "trap 'echo hangs >> $SPLITEE_SOFTWARE/starts; exit 1' ABRT; sleep 1000 & wait")
    process = device.start("--within", "100")
    device.await_starts(NEW)
    process.send_signal(signal.SIGABRT)
    assert process.wait(20) == -signal.SIGABRT
    assert device.starts == [NEW, "hangs"]
    device.start()
    device.await_starts(NEW, "hangs", OLD)


def test_launcher_returns_the_exit_code_if_started_with_sigchld_ignored(device: Device) -> None:
    device.serves(OLD, "exit 7")
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        process = device.start()
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert process.wait(20) == 7


def test_power_cut_between_the_links_leaves_the_base_to_roll_back_to(device: Device) -> None:
    """The software in service is noted as `previous` already, and still is in service."""
    device.serves(OLD)
    device.software.install_base(Path(sys.prefix))
    device.software.point(PREVIOUS, OLD)
    assert device.software.before == BASE
