# SPDX-License-Identifier: Apache-2.0
"""Measures a device's rounds during training: its steps, its memory, and what may slow it down."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeVar

from splitee_device.machine import hardware
from splitee_device.machine.memory import peak

CLEAR_REFS = Path("/proc/self/clear_refs")
FORGET_PEAK = "5"  # written there, it resets VmHWM (man 5 proc)
HOT = 80.0  # degrees Celsius, from which on a Raspberry Pi slows down
BUSY = 0.25  # cores used by others from which on they are mentioned
WAITING = 0.7  # share of its steps' time with the CPU, below which a process has waited for it

T = TypeVar("T")


@dataclass(frozen=True)
class Conditions:
    """The device's conditions in a round; None: unknown."""

    cores: float  # usable by this process
    threads: int
    machine_cores: int
    others: float  # cores that other processes kept busy
    cpu: float  # share of its steps' time with the CPU; 1.0 with one thread: all the time
    temperature: float | None = None  # degrees Celsius
    throttled: tuple[str, ...] = ()  # what the firmware limits now

    def causes(self, cores_measured: float | None) -> str:
        """What may have slowed it, in words. `cores_measured`: usable cores when it was measured."""
        found = []
        if self.throttled:
            found.append(f"throttled ({', '.join(self.throttled)})")
        if self.temperature is not None and self.temperature >= HOT:
            found.append(f"hot, {self.temperature:.0f} °C")
        if cores_measured is not None and self.cores < 0.95 * cores_measured:
            found.append(f"{self.cores:g} cores allowed, {cores_measured:g} when it was measured")
        if self.others >= BUSY and self.others + self.threads > self.machine_cores:
            found.append(f"others keep {self.others:.1f} of {self.machine_cores} cores busy")
        if not found and self.cpu < WAITING:
            found.append(f"it had the CPU for {self.cpu:.0%} of the time")
        return ", ".join(found) or "no cause found: not hot, not throttled, no other load"


@dataclass(frozen=True)
class Round:
    """The costs of training in one round. `available`: bytes that it might have used; None: unknown."""

    step: float  # seconds
    memory: int  # bytes at the peak, without the pages of files
    available: int | None
    conditions: Conditions


class Meter:
    """Times the steps of one round after the other."""

    def __init__(self, threads: int, memory: int | None = None) -> None:
        """`memory`: bytes that training may use, if that is less than available."""
        self._threads = threads
        self._memory = memory
        self._begin()

    def steps(self, batches: Iterator[T]) -> Iterator[T]:
        """Passes on a round's `batches`. The time to make each batch counts, the time to use it does not."""
        self._begin()
        while True:
            cpu, begun = time.process_time(), time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._seconds.append(time.perf_counter() - begun)
            self._cpu += time.process_time() - cpu
            yield batch

    def round(self) -> Round | None:
        """The measurement of the round whose steps have been passed on; None: it had none.

        A step is the median, or the mean if a CPU quota makes training run in bursts.
        """
        if not self._seconds:
            return None
        cores = hardware.usable_cores()
        # A quota makes the process wait at any system call, also between the steps. In the long run the steps
        # take at least their CPU time divided by the allowed cores.
        wall = max(sum(self._seconds), self._cpu / cores)
        degrees, throttled = hardware.temperature().value, hardware.throttled().value
        return Round(
            step=median(self._seconds) if cores >= self._threads else wall / len(self._seconds),
            memory=peak(),
            available=hardware.least(self._memory, hardware.memory_for_training()),
            conditions=Conditions(
                cores=cores,
                threads=self._threads,
                machine_cores=os.cpu_count() or 1,
                others=self._load.of_others(),
                cpu=self._cpu / (wall * self._threads),
                temperature=degrees if isinstance(degrees, float) else None,
                throttled=hardware.throttled_now(throttled),
            ),
        )

    def _begin(self) -> None:
        self._seconds: list[float] = []
        self._cpu = 0.0
        self._load = hardware.Load()
        with suppress(OSError):  # otherwise the peak is that of all rounds so far
            CLEAR_REFS.write_text(FORGET_PEAK)
