# SPDX-License-Identifier: Apache-2.0
"""Small devices on one machine: a share of a core for each process, and a limit of memory.

A share needs a control group (v1 or v2), which root may create, but most users may not. Without one, devices
are pinned to a core each, in turn. Memory is a setting of the device: its choice of a cut respects it, but
nothing enforces it.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from splitee_device.machine import cgroup
from splitee_device.machine.memory import memory

PERIOD = 100_000  # microseconds
KINDS = ((1.0, 420), (0.6, 200), (0.3, 130))  # share of a core, MiB beyond what this process takes; in turn
STEP = 10  # MiB


@dataclass(frozen=True)
class Limits:
    """What a device may use: cores, and MiB in total when it trains."""

    cpu: float
    memory: int


def device_limits(count: int) -> list[Limits]:
    """Limits of `count` devices: memory is what Python with torch takes here, and some more."""
    here = memory()["RssAnon"] >> 20
    return [
        Limits(cpu, -(-(here + more) // STEP) * STEP)
        for cpu, more in (KINDS[index % len(KINDS)] for index in range(count))
    ]


class CpuShares:
    """Gives processes their share of a core, and removes the control groups at the end."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._name = f"splitee-demo-{secrets.token_hex(4)}"
        self._groups: list[Path] = []
        self.pinned = 0  # processes that have a core instead of a share

    def __enter__(self) -> CpuShares:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for group in self._groups:
            with suppress(OSError):
                group.rmdir()

    def limit(self, process: int, share: float) -> float:
        """Limit a process that has just started, and those that it will start; returns the share it got."""
        for version, parent in self._parents():
            with suppress(OSError):
                self._make_group(parent, version, process, share)
                return share
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(process, {cores[self.pinned % len(cores)]})
        self.pinned += 1
        return 1.0

    def _parents(self) -> list[tuple[int, Path]]:
        """Where a group may be: below this process's own in v1; in v2, if that has members, at the top."""
        return [
            *((1, folder) for folder in cgroup.folders("cpu", 1, self._root)[:1]),
            *((2, folder) for folder in cgroup.folders("cpu", 2, self._root)[-1:]),
        ]

    def _make_group(self, parent: Path, version: int, process: int, share: float) -> None:
        group = parent / f"{self._name}-{len(self._groups) + 1}"
        group.mkdir()
        self._groups.append(group)
        quota = round(share * PERIOD)
        if version == 1:
            (group / "cpu.cfs_period_us").write_text(str(PERIOD))
            (group / "cpu.cfs_quota_us").write_text(str(quota))
        else:
            (group / "cpu.max").write_text(f"{quota} {PERIOD}")
        (group / "cgroup.procs").write_text(str(process))
