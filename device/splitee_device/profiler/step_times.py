# SPDX-License-Identifier: Apache-2.0
"""The duration of a training step and of each of its parts."""

from __future__ import annotations

import time
from itertools import pairwise
from statistics import fmean, median

from torch import Tensor, nn

from splitee_device.training.trainer import ClientTrainer


class Times:
    """Seconds of every step, and of its parts."""

    def __init__(self, *, bursty: bool) -> None:
        """`bursty`: a CPU quota makes the process wait now and then."""
        self.bursty = bursty
        self.stretch = 1.0  # wall seconds per CPU second, overall
        self.reference = 0.0  # seconds of the reference that ran between the steps
        self.steps: list[float] = []
        self.forward: list[float] = []
        self.backward: list[float] = []
        self.optimizer: list[float] = []
        self.encode: list[float] = []
        self.step_cpu: list[float] = []  # of all threads
        self.cpu: list[float] = []  # with encoding
        self.payload = 0

    def typical(self) -> tuple[float, float]:
        """A step and its encoding. If a quota makes the process wait, each gets its share by CPU time,
        because the wait itself occurs at whichever system call comes next."""
        if not self.bursty:
            return median(self.steps), median(self.encode)
        step = self.stretch * fmean(self.step_cpu)
        return step, self.stretch * fmean(self.cpu) - step

    def in_blocks(self, length: float) -> list[float]:
        """The mean step of each block of steps that takes `length` seconds."""
        means: list[float] = []
        block: list[float] = []
        for step in self.steps:
            block.append(step)
            if sum(block) >= length:
                means.append(fmean(block))
                block = []
        return means or [fmean(self.steps)]


class StepClock:
    """Records when a step's forward, backward and optimizer begin and end, with torch's own hooks."""

    def __init__(self, trainer: ClientTrainer) -> None:
        self._marks: dict[str, float] = {}
        trainer.body.register_forward_pre_hook(lambda *_: self._begin())
        trainer.exit.register_forward_hook(self._on_logits)
        trainer.optimizer.register_step_pre_hook(lambda *_: self._mark("gradients"))
        trainer.optimizer.register_step_post_hook(lambda *_: self._mark("end"))

    def note(self, times: Times) -> None:
        """Add the step that has just ended."""
        marks = [self._marks[name] for name in ("begin", "logits", "gradients", "end")]
        forward, backward, optimizer = (later - earlier for earlier, later in pairwise(marks))
        times.forward.append(forward)
        times.backward.append(backward)
        times.optimizer.append(optimizer)

    def _begin(self) -> None:
        """Marks the start of a step's forward, once: with all stages frozen, images pass in groups."""
        if self._marks.get("begin", 0.0) <= self._marks.get("end", 0.0):
            self._mark("begin")

    def _mark(self, name: str) -> None:
        self._marks[name] = time.perf_counter()

    def _on_logits(self, _exit: nn.Module, _inputs: object, logits: Tensor) -> None:
        if logits.requires_grad:
            logits.register_hook(lambda _gradient: self._mark("logits"))  # type: ignore[no-untyped-call]
