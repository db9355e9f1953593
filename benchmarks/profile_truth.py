# SPDX-License-Identifier: Apache-2.0
"""Trains rounds at each cut as a device does, and prints its step, memory and time (see profile.py).

python benchmarks/profile_truth.py SPEC THREADS BROKER CUT...   (SPEC: RunSpec as JSON)

If there are several cuts, each is trained in a process forked from this one, which has only imported torch.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import sys
import time
from collections import deque
from contextlib import closing
from itertools import count
from pathlib import Path
from statistics import fmean, median

import numpy as np
import torch
import torch.fx.experimental.symbolic_shapes  # loaded at any cut: not the cut's memory

import splitee.cli.main  # noqa: F401  # as in a device's process: keeps torch's compiler out
from splitee.mqtt.address import BrokerAddress
from splitee.mqtt.link import Link
from splitee.protocol.cut_batch import CutBatch
from splitee.protocol.parts import publish_in_parts
from splitee.protocol.rounds import RoundOpen
from splitee.protocol.run_spec import RunSpec
from splitee.training.state import pack_state
from splitee_device.data.image_sets import ImageSet
from splitee_device.data.images import DeviceData
from splitee_device.machine.hardware import usable_cores
from splitee_device.machine.memory import MemoryWatch, memory
from splitee_device.profiler.reference import Reference
from splitee_device.training.trainer import ClientTrainer, open_trainer

INPUT = (3, 32, 32)
LEAST_SECONDS = 4.0  # of measured rounds, after a first one that is not measured


def payload(spec: RunSpec, step: int, batch: CutBatch) -> bytes:
    opened = RoundOpen(run=spec.run, round=1, attempt=1, phase="train")
    return batch.message(spec, opened, "train", step).encode()


def main(spec: RunSpec, threads: int, broker: str, cuts: list[int]) -> None:
    if len(cuts) == 1:
        measure(spec, cuts[0], threads, broker)
        return
    gc.freeze()  # else the garbage collector of each fork would write to, and so copy, torch's pages
    for cut in cuts:
        child = os.fork()
        if child == 0:
            measure(spec, cut, threads, broker)
            sys.exit()
        _, status = os.waitpid(child, 0)
        if status:
            raise SystemExit(f"cut {cut}: its process ended with status {status}")


class Training:
    """Times rounds that are trained and published like those of a device."""

    def __init__(self, trainer: ClientTrainer, spec: RunSpec, link: Link) -> None:
        self._trainer = trainer
        self._spec = spec
        self._link = link
        self._window: deque[bytes] = deque(maxlen=spec.window)
        self.steps: list[float] = []
        self.step_cpu: list[float] = []  # of all threads but the link's
        self.walls: list[float] = []  # of rounds
        self.cpu: list[float] = []  # of rounds, all threads

    def round(self, number: int, reference: Reference | None) -> None:
        """Train a round; the reference runs between its steps, and its time does not count."""
        started, started_cpu = self._now(reference)
        batches = self._trainer.round(number)
        for step in range(self._spec.steps):
            begun, begun_cpu = time.perf_counter(), time.process_time() - self._link.cpu
            batch = next(batches)
            self.step_cpu.append(time.process_time() - self._link.cpu - begun_cpu)
            self.steps.append(time.perf_counter() - begun)
            self._window.append(payload(self._spec, step, batch))
            publish_in_parts(self._link, "truth/features", self._window[-1])
            if reference is not None:
                reference.keep_up(sum(self.step_cpu))
        self._link.flush(60)
        ended, ended_cpu = self._now(reference)
        self.walls.append(ended - started)
        self.cpu.append(ended_cpu - started_cpu)

    def times(self, reference: Reference, *, bursty: bool) -> dict[str, float]:
        """Seconds of a step and of a round.

        `bursty`: a CPU quota makes the process wait at arbitrary points, so waits are distributed over steps
        in proportion to CPU time.
        """
        if not bursty:
            return {"step": median(self.steps), "round": fmean(self.walls)}
        stretch = (sum(self.walls) + reference.wall) / (sum(self.cpu) + reference.cpu)
        return {"step": stretch * fmean(self.step_cpu), "round": stretch * fmean(self.cpu)}

    @staticmethod
    def _now(reference: Reference | None) -> tuple[float, float]:
        """Wall and CPU seconds so far, without those of the reference."""
        wall, cpu = time.perf_counter(), time.process_time()
        return (wall - reference.wall, cpu - reference.cpu) if reference is not None else (wall, cpu)


def measure(spec: RunSpec, cut: int, threads: int, broker: str) -> None:
    """Train at the cut, in a process that has not trained before, and print a JSON line."""
    torch.set_num_threads(threads)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
    before, watch = memory()["RssAnon"], MemoryWatch()
    generator = np.random.default_rng(1)
    train, held_out = (
        ImageSet(generator.integers(0, 256, (64, *INPUT), np.uint8), generator.integers(0, 10, 64))
        for _ in range(2)
    )
    data = DeviceData(train, held_out, tuple("0123456789"), ())
    with closing(Link(BrokerAddress.parse(broker), f"truth-{cut}")) as link:
        link.open(10)
        with watch:
            trainer = open_trainer(spec, cut, "truth", data)
            initial = copy.deepcopy(trainer.state())
            Training(trainer, spec, link).round(1, None)
            pack_state(trainer.state())
            for _ in trainer.evaluate():
                pass
        training, reference = Training(trainer, spec, link), Reference()
        for number in count(2):
            training.round(number, reference)
            if sum(training.walls) >= LEAST_SECONDS:
                break
    del initial
    bursty = usable_cores() < threads
    result = {
        "cut": cut,
        "memory": watch.peak - before,
        "reference": reference.seconds(bursty=bursty),
        **training.times(reference, bursty=bursty),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    spec_json, threads, broker, *cuts = sys.argv[1:]
    main(RunSpec.decode(spec_json.encode()), int(threads), broker, [int(cut) for cut in cuts])
