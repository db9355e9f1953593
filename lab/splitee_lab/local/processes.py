# SPDX-License-Identifier: Apache-2.0
"""The child processes of a command: started together, watched, and never left behind."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from splitee.errors import ChildFailed, ExitCode, Terminated
from splitee_lab.local.forked import ForkedCommand, without_settings

GRACE = 10.0  # seconds to finish after SIGTERM
EXIT_TIMEOUT = 60.0  # seconds from the first child's end to the last one's
LAST_LINES = 5  # of a failed child's log


@dataclass(frozen=True, eq=False)
class Child:
    """One `splitee` command in a process of its own."""

    name: str
    process: ForkedCommand
    log: Path


class Children:
    """`splitee` commands as processes; leaving the context ends every one that still runs."""

    def __init__(self, logs: Path, settings: Mapping[str, str]) -> None:
        """`settings`: SPLITEE_* variables for all of them; they do not inherit this command's own."""
        self._logs = logs
        self._environment = {**without_settings(), **settings}
        self._children: list[Child] = []
        self._first_end: float | None = None

    def __enter__(self) -> Children:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _signals_ignored():
            self.stop()

    def start(self, name: str, arguments: Sequence[str]) -> Child:
        """Runs `splitee ARGUMENTS`; its output goes to NAME.log.

        Raises:
            ChildFailed: no process can be forked here.
        """
        path = self._logs / f"{name}.log"
        with _signals_deferred():
            child = Child(name, ForkedCommand(arguments, path, self._environment, title=name), path)
            self._children.append(child)
        return child

    def all_done(self) -> bool:
        """Whether every child has ended well.

        Raises:
            ChildFailed: one has not, or one has ended and others have not followed in EXIT_TIMEOUT s.
        """
        codes = self.check()
        running = [child.name for child, code in codes.items() if code is None]
        if len(running) == len(codes):
            return False
        self._first_end = self._first_end or time.monotonic()
        if running and time.monotonic() > self._first_end + EXIT_TIMEOUT:
            ended = ", ".join(child.name for child, code in codes.items() if code == 0)
            raise ChildFailed(
                f"{ended} ended, but {', '.join(running)} did not follow in {EXIT_TIMEOUT:.0f} s; "
                f"see the logs in {self._logs}"
            )
        return not running

    def check(self) -> dict[Child, int | None]:
        """The exit codes so far; None of those that run. Raises ChildFailed: one has not ended well."""
        codes = {child: child.process.poll() for child in self._children}
        for child, code in codes.items():
            if code:
                raise ChildFailed(_describe_failure(child, code))
        return codes

    def stop(self) -> None:
        """SIGTERM to all that run, GRACE seconds for all together, then SIGKILL."""
        running = [child.process for child in self._children if child.process.poll() is None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + GRACE
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def signals_unwind() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind the stack as Ctrl-C does, so that contexts end their children."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise Terminated(128 + number)

    with _handling(leave, signal.SIGTERM, signal.SIGHUP):
        yield


@contextlib.contextmanager
def _signals_deferred() -> Iterator[None]:
    """Defer signals: a child that has started must be registered before the stack unwinds."""
    came: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        came.append(number)

    with _handling(note, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        yield
    for number in came:
        signal.raise_signal(number)


def _signals_ignored() -> contextlib.AbstractContextManager[None]:
    """Ignore signals: ending the children takes little time, and must not be interrupted."""
    return _handling(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def _handling(handler: Any, *numbers: signal.Signals) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _describe_failure(child: Child, code: int) -> str:
    if code < 0:
        reason = f"was ended by {signal.Signals(-code).name}"
    else:
        meaning = {int(known): f" ({known.help})" for known in ExitCode}.get(code, "")
        reason = f"ended with exit code {code}{meaning}"
    lines = child.log.read_text(errors="replace").strip().splitlines()[-LAST_LINES:]
    tail = "".join(f"\n  {line}" for line in lines) if lines else " nothing"
    return f"{child.name} {reason}; the others are stopped. {child.log} ends with:{tail}"
