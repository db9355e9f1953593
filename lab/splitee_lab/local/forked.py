# SPDX-License-Identifier: Apache-2.0
"""Processes that are forked from one that has loaded torch: each starts in a moment instead of seconds.

That one is multiprocessing's fork server. It starts with the first of them, and ends with the process that
uses it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from splitee.errors import ChildFailed

# The command line first: it decides what torch may load. No more than a device needs: the pages are part of
# what a device measures as its own memory.
LOADED_ONCE = [
    "splitee.cli.main",
    "numpy.ma",  # np.unique imports it
    "torch",
    "torchvision",
    "torch.fx.experimental.symbolic_shapes",  # measuring a network needs it
    "splitee_device.commands.device",
    "splitee_device.participate",
]
FIRST, LAST = "splitee_lab.local.growing_heap", "splitee_lab.local.frozen_heap"
TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # what a terminal sends to a whole group
COMM = Path("/proc/self/comm")  # what `top` and `ps -e` show

CONTEXT = multiprocessing.get_context("forkserver")


def load_once(*modules: str) -> None:
    """Have the fork server load these, too, if it has not started yet."""
    CONTEXT.set_forkserver_preload([FIRST, *LOADED_ONCE, *modules, LAST])


load_once()


def start(target: Callable[..., None], *arguments: Any, daemon: bool = False) -> BaseProcess:
    """A process that runs `target(*arguments)`, both pickled; SIGINT does not reach it.

    Raises:
        ChildFailed: no process can be forked here.
    """
    process = CONTEXT.Process(target=_begin, args=(target, arguments), daemon=daemon)
    try:
        resource_tracker.ensure_running()  # a later start of it would unblock the signals
        with _signals_blocked(), _environment():
            process.start()
    except (OSError, EOFError) as error:
        raise ChildFailed(
            f"no process can be forked: {error}; it takes {sys.executable} with torch, and a TMPDIR of a "
            "short name that may hold a socket"
        ) from None
    return process


class ForkedCommand:
    """`splitee ARGUMENTS` in a session of its own, so that a terminal's signals do not reach it.

    Its methods are those of subprocess.Popen. It ends with the process that started it.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
        *,
        title: str,
        errors: Path | None = None,
        program: Callable[[], object] | None = None,
    ) -> None:
        """`environment`: all its variables. `title`: in the list of processes, as `splitee TITLE`.

        `log`: file for its output; `errors`: another file for stderr. `program`: runs instead of the command,
        with these arguments; it is pickled.

        Raises:
            ChildFailed: no process can be forked here.
        """
        self.args = ["splitee", *arguments]
        files = (str(log), str(errors or log))
        for file in files:
            Path(file).touch()
        self._process = start(_run_command, program, self.args, title, files, dict(environment))
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        self._process.join(0)
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def without_settings() -> dict[str, str]:
    """This process's environment without its SPLITEE_* variables: its children must not inherit them."""
    return {key: value for key, value in os.environ.items() if not key.startswith("SPLITEE_")}


def _begin(target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, set(TERMINAL_SIGNALS) - {signal.SIGINT})
    target(*arguments)


def _run_command(
    program: Callable[[], object] | None,
    arguments: list[str],
    title: str,
    files: tuple[str, str],
    environment: dict[str, str],
) -> None:
    from splitee.cli.main import main

    os.setsid()
    with contextlib.suppress(OSError):  # if there is no /proc
        COMM.write_text(f"splitee {title}")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # even if a shell ignores it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    for descriptor, name in enumerate(files, start=1):
        with Path(name).open("ab") as file:
            os.dup2(file.fileno(), descriptor)
    sys.argv = arguments
    (program or main)()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """The fork server and its processes start with signals blocked: none is lost, none ends the server."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, TERMINAL_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """The fork server's OpenMP has one thread, which its processes inherit; its modules are this process's.

    Python 3.11 would look for what it loads on other paths, and pass over what it does not find there.
    """
    changed = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
