# SPDX-License-Identifier: Apache-2.0
"""The machine that a demo runs on, and the memory that its devices' processes take there."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from splitee_device.machine.hardware import facts, usable_cores
from splitee_device.machine.memory import peak


def machine() -> str:
    """The machine's model or processor, and the cores that may be used: "Raspberry Pi 5 Model B, 4 cores"."""
    known = facts(observe=0)
    what = known["model"].value or known["cpu"].value or known["architecture"].value or "unknown machine"
    cores = f"{usable_cores():g}"
    return f"{what}, {cores} core{'' if cores == '1' else 's'}"


class PeakMemory:
    """Bytes that processes have allocated at their peak, from samples and the kernel's own peak."""

    def __init__(self) -> None:
        self._processes: dict[str, Path] = {}
        self.found: dict[str, int] = {}

    def watch(self, name: str, process: int) -> None:
        """Watch a process from now on; `process`: its id."""
        self._processes[name] = Path(f"/proc/{process}/status")

    def monitor(self) -> None:
        """Sample all processes that still run."""
        for name, status in self._processes.items():
            with suppress(OSError, KeyError):  # it has ended
                self.found[name] = max(self.found.get(name, 0), peak(status))
