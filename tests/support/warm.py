# SPDX-License-Identifier: Apache-2.0
"""`splitee` commands as processes that are forked from one that has loaded torch: saves 1.5 s each.

They are forked as those of a demo, from a fork server that has loaded more modules. Start-up, memory and
other programs are tested with exec instead.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from splitee_lab.local.forked import ForkedCommand, load_once

load_once(
    "splitee.commands.status",
    "splitee_web.commands.page",
    "splitee_server.commands.server",
    "splitee_server.learning.initial.begin",
    "splitee_server.service",
    "splitee_server.release.exporting",
    "first_uses",
)
FORK = "splitee.tests.fork"  # audit event of each start


def children_cpu() -> float:
    """CPU seconds of the fork server and of its children that have ended."""
    pid = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    if pid is None:
        return 0.0
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


class WarmProcess(ForkedCommand):
    """A process with the name of its command; an audit event counts it."""

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        environment: Mapping[str, str] = os.environ,
        *,
        errors: Path | None = None,
        program: Callable[[], object] | None = None,
    ) -> None:
        sys.audit(FORK)
        super().__init__(arguments, log, environment, title=arguments[0], errors=errors, program=program)


def run(
    *arguments: object, environment: Mapping[str, str] = os.environ, timeout: float = 120.0
) -> subprocess.CompletedProcess[str]:
    """Run `splitee ARGUMENTS`; returns the result as subprocess.run does."""
    with TemporaryDirectory() as folder:
        log, errors = Path(folder, "log"), Path(folder, "errors")
        process = WarmProcess([str(argument) for argument in arguments], log, environment, errors=errors)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, code, log.read_text(), errors.read_text())
