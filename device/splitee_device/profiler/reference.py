# SPDX-License-Identifier: Apache-2.0
"""A fixed piece of training, timed between the steps at a cut: it shows the device's speed at that moment.

A device's speed varies with its temperature, its clock rate and other load, also on the same host. The costs
of two cuts are comparable if each is expressed in units of the reference beside it.
"""

from __future__ import annotations

import time
from statistics import fmean, median

import torch
from torch import nn

PART = 0.1  # share of the CPU time of training
SAMPLES, CHANNELS, SIDE = 8, 16, 16
REPEATS = 3


class Reference:
    """Small layers of the kinds that networks consist of, forward and backward; they need about 1 MB."""

    def __init__(self) -> None:
        wide = 2 * CHANNELS
        self._layers = nn.Sequential(
            nn.Conv2d(CHANNELS, wide, 3, padding=1),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide),
            nn.Flatten(),
            nn.Linear(wide * SIDE**2, 10),
        )
        self._input = torch.ones(SAMPLES, CHANNELS, SIDE, SIDE)
        self._walls: list[float] = []
        self._cpus: list[float] = []
        self._run()  # the first run allocates memory and chooses kernels

    @property
    def wall(self) -> float:
        """Total seconds so far."""
        return sum(self._walls)

    @property
    def cpu(self) -> float:
        """Total CPU seconds so far, of all threads."""
        return sum(self._cpus)

    def keep_up(self, training: float) -> None:
        """Run until it has used PART of the CPU seconds of training so far, at least once."""
        while not self._cpus or self.cpu < PART * training:
            begun, cpu_begun = time.perf_counter(), time.process_time()
            self._run()
            self._cpus.append(time.process_time() - cpu_begun)
            self._walls.append(time.perf_counter() - begun)

    def seconds(self, *, bursty: bool) -> float:
        """Seconds of one run; if a CPU quota makes the process wait, CPU seconds, which exclude the waits."""
        return fmean(self._cpus) if bursty else median(self._walls)

    def _run(self) -> None:
        for _ in range(REPEATS):
            self._layers(self._input).sum().backward()
