"""The child processes of a command: started together, watched, and never left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

from splitee.errors import ChildFailed, ExitCode

GRACE = 10.0  # seconds to finish after SIGTERM
LAST_LINES = 5  # of a failed child's log


@dataclass(frozen=True)
class Child:
    """One `splitee` command in a process of its own."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path


class Children:
    """`splitee` commands as processes; leaving the context ends every one that still runs."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._children: list[Child] = []

    def __enter__(self) -> Children:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, name: str, arguments: Sequence[str]) -> None:
        """Runs `splitee ARGUMENTS`; its output goes to NAME.log.

        It is in a session of its own, so that a Ctrl-C reaches it as this side's SIGTERM, once. The
        SPLITEE_* variables are this command's, not its.
        """
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SPLITEE_")}
        path = self._logs / f"{name}.log"
        with path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "splitee", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        self._children.append(Child(name, process, path))

    def all_done(self) -> bool:
        """Whether every child has ended well.

        Raises:
            ChildFailed: one has not; with its exit code's meaning and its log's last lines.
        """
        codes = [child.process.poll() for child in self._children]
        for child, code in zip(self._children, codes, strict=True):
            if code:
                raise ChildFailed(_last_words(child, code))
        return all(code == 0 for code in codes)

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
def sigterm_as_exit() -> Iterator[None]:
    """SIGTERM unwinds the stack as Ctrl-C does, so that contexts end their children."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _last_words(child: Child, code: int) -> str:
    if code < 0:
        reason = f"was ended by {signal.Signals(-code).name}"
    else:
        meaning = {int(known): f" ({known.help})" for known in ExitCode}.get(code, "")
        reason = f"ended with exit code {code}{meaning}"
    lines = child.log.read_text(errors="replace").strip().splitlines()[-LAST_LINES:]
    said = "".join(f"\n  {line}" for line in lines) if lines else " nothing"
    return f"{child.name} {reason}; the others are stopped. {child.log} ends with:{said}"
