# SPDX-License-Identifier: Apache-2.0
"""`splitee-start`: runs a `splitee` command from the software in service, and tries what was installed.

It runs from what the device was installed with, needs the standard library only, and does not change with an
upgrade. New software that does not even start counts as software that does not come up.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from splitee_device.upgrade.orphans import Orphans
from splitee_device.upgrade.software import (
    BASE,
    FOREIGN,
    LAUNCHER,
    RUNS,
    TRIAL,
    TRIED,
    VARIABLE,
    Software,
)

WITHIN = 60.0  # seconds in which software must come up
LONGEST = 86_400.0  # seconds; the limit of --within
POLL = 1.0  # seconds between two looks at the links
STOP_TIMEOUT = 110.0  # seconds that a process has to save its state, before the unit's TimeoutStopSec
TRIAL_STOP_TIMEOUT = 5.0  # likewise, for software that did not come up
CONNECT_TIMEOUT = 5.0  # seconds to wait for the broker's port
UNREACHABLE, STATE = 3, 10  # exit codes; docs/reference/exit-codes.md
KILLED = 128  # and the signal's number


class Launcher:
    """Starts processes, one after the other, until one ends by itself or a signal ends it."""

    def __init__(self, software: Software, arguments: Sequence[str], within: float = WITHIN) -> None:
        """`within`: seconds in which software under trial comes up."""
        self._software = software
        self._arguments = list(arguments)
        self._within = within
        self._is_stopping = False
        self._child = 0
        self._signals = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGABRT}
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup sets it
            self._signals.add(signal.SIGHUP)

    def run(self) -> int:
        """Returns the exit code of the last process. Raises OSError: the links cannot be changed."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # while it is ignored, exit codes are lost
        signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        orphans = Orphans()
        self._software.install_base(Path(sys.prefix))
        if (unfinished := self._software.target(TRIED)) is not None:
            self._give_up(unfinished, "it was cut off before it had come up")
        while True:
            name = self._begin_trial() or self._software.in_service
            self._start(name)
            code = self._watch(name)
            orphans.end()  # such as a camera's program, which would block that of the next process
            if self._software.target(TRIED) == name:
                code = self._end_trial(name, code)
            if code is not None:
                return code

    def _begin_trial(self) -> str | None:
        """The name of the software that is to be tried now, if any."""
        name = self._software.target(TRIAL)
        if name is None:
            return None
        self._software.move(TRIAL, TRIED)
        if not self._software.is_there(name):
            self._give_up(name, "its Python is not there")
            return None
        _print(f"trying {name}: it has {self._within:.0f} s to come up")
        return name

    def _start(self, name: str) -> None:
        _notify("WATCHDOG=1")
        python = str(self._software.python(name))
        environment = {
            **os.environ,
            VARIABLE: str(self._software.path),
            LAUNCHER: str(os.getpid()),
            RUNS: name,
        }
        environment.pop("WATCHDOG_PID", None)  # it is the child that feeds the watchdog
        for variable in FOREIGN if name != BASE else ():
            environment.pop(variable, None)
        command = [python, "-P", "-m", "splitee", *self._arguments]
        self._child = os.posix_spawn(python, command, environment, setsigmask=())

    def _watch(self, name: str) -> int | None:
        """The exit code of the process; None: it was ended here, because other software is to run."""
        due = time.monotonic() + self._within
        while (code := self._wait(POLL)) is None:
            if self._is_stopping:
                return self._stop(STOP_TIMEOUT)
            if self._software.target(TRIED) == name:
                if time.monotonic() < due:
                    continue
                if self._is_broker_up():
                    self._stop(TRIAL_STOP_TIMEOUT)
                    return None
                due += self._within
            elif self._software.target(TRIAL) is not None:
                self._stop(STOP_TIMEOUT)
                return 0 if self._is_stopping else None
        return code

    def _end_trial(self, name: str, code: int | None) -> int | None:
        """Handles the end of software that has not come up: gives it up, unless that was not its fault."""
        if self._is_stopping or (code == UNREACHABLE and not self._is_broker_up()):
            self._software.move(TRIED, TRIAL)
            return code or 0
        if code is None:
            self._give_up(name, f"it did not come up within {self._within:.0f} s")
        else:
            self._give_up(name, f"it ended with exit code {code} before it had come up")
        return None

    def _give_up(self, name: str, reason: str) -> None:
        self._software.reject_trial(name, reason)
        self._software.prune_if_idle()
        _print(f"{name} is given up: {reason}; {self._software.in_service} runs again")

    def _is_broker_up(self) -> bool:
        """Whether the broker's port can be reached from here; also if no broker is known."""
        broker = self._software.broker()
        if broker is None:
            return True
        try:
            socket.create_connection(broker, CONNECT_TIMEOUT).close()
        except OSError:
            return False
        except (ValueError, OverflowError):  # what was noted is no address
            return True
        return True

    def _stop(self, patience: float) -> int:
        """Sends SIGTERM to the process, and kills it after `patience` seconds; returns its exit code."""
        os.kill(self._child, signal.SIGTERM)
        due = time.monotonic() + patience
        while (code := self._wait(max(0.0, due - time.monotonic()))) is None:
            if time.monotonic() >= due:
                os.kill(self._child, signal.SIGKILL)
                due += patience
        return code

    def _wait(self, timeout: float) -> int | None:
        """The process's exit code as soon as it has ended; None: after a signal, or `timeout` seconds."""
        due = time.monotonic() + timeout
        while True:
            if (code := self._reap()) is not None:
                return code
            taken = signal.sigtimedwait(self._signals, max(0.0, due - time.monotonic()))
            if taken is None:
                return self._reap()
            if taken.si_signo == signal.SIGABRT:
                self._abort()
            if taken.si_signo != signal.SIGCHLD and not self._is_stopping:
                self._is_stopping = True
                _notify("STOPPING=1")
                return self._reap()

    def _abort(self) -> NoReturn:
        """On a request of systemd's watchdog: aborts the process first, which shows where it hangs."""
        os.kill(self._child, signal.SIGABRT)
        while self._reap() is None:
            signal.sigwait({signal.SIGCHLD})
        os.abort()

    def _reap(self) -> int | None:
        """The exit code of the process if it has ended. In a container, orphans are reaped here as well."""
        while True:
            process, status = os.waitpid(-1, os.WNOHANG)
            if process == 0:
                return None
            if process == self._child:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else KILLED - code


def _print(line: str) -> None:
    with suppress(OSError):  # nobody reads it any more
        sys.stderr.write(f"splitee-start: {line}\n")
        sys.stderr.flush()


def _notify(state: str) -> None:
    """Tells systemd, if it listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        try:
            sender.sendto(state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
        except OSError as error:
            _print(f"cannot tell systemd {state}: {error.strerror}")


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="splitee-start",
        description="Runs a splitee command from the software in service, as `splitee upgrade` has set it.",
    )
    parser.add_argument(
        "--software",
        type=Path,
        metavar="DIR",
        default=os.environ.get(VARIABLE) or None,
        help=f"folder in which software is kept; default: {VARIABLE}",
    )
    parser.add_argument(
        "--within",
        type=float,
        metavar="SECONDS",
        default=WITHIN,
        help="how long new software has to come up; default: %(default)s",
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="COMMAND", help="with its flags")
    given = parser.parse_args()
    if given.software is None or not given.arguments or not 0 < given.within < LONGEST:
        parser.error(
            f"expected a folder (--software), a COMMAND, and --within above 0 and below {LONGEST:.0f}"
        )
    return given


def _take_lock(path: Path) -> bool:
    """Whether no other launcher runs from the folder; if so, none can while this process runs."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def main() -> None:
    """Entry point of `splitee-start`."""
    given = _parse_arguments()
    path = given.software.absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not _take_lock(path):
            _print(f"{path}: another splitee-start runs from it; give each its own folder with --software")
            sys.exit(STATE)
        sys.exit(Launcher(Software(path), given.arguments, given.within).run())
    except OSError as error:
        _print(f"{path}: {error.strerror}; choose another --software, or free space")
        sys.exit(STATE)


if __name__ == "__main__":
    main()
