# SPDX-License-Identifier: Apache-2.0
"""The memory that a process takes at its peak, seen from outside."""

from __future__ import annotations

import subprocess
import sys

from splitee_lab.demo.machine import PeakMemory, machine

SCRIPT = "held = bytearray(b'x' * (200 << 20)); print(flush=True); input()"


def test_peak_memory_of_another_process_is_kept_after_it_has_ended() -> None:
    peaks = PeakMemory()
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        peaks.watch("pi-1", process.pid)
        peaks.monitor()
        process.stdin.close()
        process.wait()
        peaks.monitor()
    peaks.monitor()
    assert 200 << 20 < peaks.found["pi-1"] < 500 << 20


def test_machine_is_named_with_its_cores() -> None:
    name, _, cores = machine().rpartition(", ")
    assert name
    assert cores.split()[1] in ("core", "cores") and float(cores.split()[0]) > 0
