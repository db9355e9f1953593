"""`splitee` commands as processes that are forked from one which has loaded torch: 1.5 s saved each.

They are processes as any other, with a pid, signals, a log and an exit code. Start-up itself, memory, and
what is not the `splitee` command are tested with exec instead.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(  # the command line first: it decides what torch may load
    [
        "splitee.cli.main",
        "splitee_server.commands.server",
        "splitee_device.commands.device",
        "torchvision",
        "torch.fx.experimental.symbolic_shapes",  # measuring a network asks for it
        "splitee_server.release.exporting",
        "torch._dynamo.eval_frame",  # exporting asks for these
        "torch.onnx._internal.exporter._compat",
    ]
)
FORK = "splitee.tests.fork"  # audit event of each start


def children_cpu() -> float:
    """CPU seconds of the forked processes that have ended."""
    pid = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    if pid is None:
        return 0.0
    times = psutil.Process(pid).cpu_times()
    return float(times.children_user + times.children_system)


class WarmProcess:
    """What the tests need of subprocess.Popen."""

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        environment: Mapping[str, str] = os.environ,
        *,
        errors: Path | None = None,
    ) -> None:
        """`arguments`: of `splitee`. `environment`: the whole of it.

        `log` takes what it prints; `errors`: to another file what it says on stderr.
        """
        sys.audit(FORK)
        self.args = ["splitee", *arguments]
        files = (str(log), str(errors or log))
        for file in files:
            Path(file).touch()
        self._process = _context.Process(target=_be_splitee, args=(self.args, files, dict(environment)))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        self._process.join(0)
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Raises TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def run(
    *arguments: object, environment: Mapping[str, str] = os.environ, timeout: float = 120.0
) -> subprocess.CompletedProcess[str]:
    """`splitee ARGUMENTS`, as subprocess.run gives it."""
    with TemporaryDirectory() as folder:
        log, errors = Path(folder, "log"), Path(folder, "errors")
        process = WarmProcess([str(argument) for argument in arguments], log, environment, errors=errors)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, code, log.read_text(), errors.read_text())


def _be_splitee(arguments: list[str], files: tuple[str, str], environment: dict[str, str]) -> None:
    from splitee.cli.main import main

    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where pytest runs in the background
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    for descriptor, name in enumerate(files, start=1):
        with Path(name).open("ab") as file:
            os.dup2(file.fileno(), descriptor)
    sys.argv = arguments
    sys.exit(main())
