# SPDX-License-Identifier: Apache-2.0
"""Processes of a race, each on its share of a core; measures their CPU time, and ends them at the end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import click
import psutil

from splitee_lab.local.limits import CpuShares

LAST_LINES = 30  # of a failed process's log; Flower logs a client's error long before it exits


@dataclass(frozen=True)
class Running:
    """A process and its log file."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path


class Processes:
    """Runs commands as processes; leaving the context kills them and their descendants."""

    def __init__(self, logs: Path, environment: Mapping[str, str]) -> None:
        self._logs = logs
        self._environment = dict(environment)
        self._running: dict[str, Running] = {}
        self._shares = CpuShares()

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        trees = [process for running in self._running.values() for process in _tree(running.process.pid)]
        for process in trees:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for running in self._running.values():
            running.process.wait()
        psutil.wait_procs(trees)
        self._shares.__exit__(kind, error, trace)

    def start(self, name: str, command: Sequence[str], *, share: float | None = None) -> None:
        """Run `command` and its descendants on `share` of a core; its output goes to NAME.log."""
        path = self._logs / f"{name}.log"
        with path.open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )
        self._running[name] = Running(name, process, path)
        if share is not None:
            self.hold(name, share)

    def hold(self, name: str, share: float) -> None:
        """Limit a process and its future descendants to `share` of a core."""
        self._shares.limit(self._running[name].process.pid, share)

    def check(self) -> None:
        """Raises ClickException, with the end of its log: a process has ended."""
        for running in self._running.values():
            if (code := running.process.poll()) is not None:
                lines = running.log.read_text(errors="replace").strip().splitlines()[-LAST_LINES:]
                tail = "".join(f"\n  {line}" for line in lines) or " nothing"
                raise click.ClickException(
                    f"{running.name} ended with exit code {code}; {running.log} ends with:{tail}"
                )

    def cpu_seconds(self, names: Sequence[str]) -> dict[str, float]:
        """User and system seconds so far of these processes, each with its descendants."""
        return {name: sum(_used(self._running[name].process.pid)) for name in names}


def require_shares() -> None:
    """Raises ClickException: processes cannot be limited to a share of a core."""
    command = [sys.executable, "-c", "input()"]
    with CpuShares() as shares, subprocess.Popen(command, stdin=subprocess.PIPE) as probe:
        shares.limit(probe.pid, 1.0)
        probe.kill()
        probe.wait()
        if shares.pinned:
            raise click.ClickException(
                "the devices of a race are unequal: a control group limits each to its share of a core, "
                "and none can be made here; root can"
            )


def _tree(pid: int) -> list[psutil.Process]:
    """A process and its descendants, parents first; empty if it is gone."""
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    return []


def _used(pid: int) -> Iterator[float]:
    """CPU seconds of each process of the tree, with those of the children that it has waited for."""
    for process in _tree(pid):
        with suppress(psutil.NoSuchProcess):  # its time is in its parent's from now on, if that waited for it
            yield sum(process.cpu_times()[:4])
