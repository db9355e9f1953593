"""Trains rounds at each cut as a device does, and prints its step, memory and time (see profile.py).

python benchmarks/profile_truth.py NETWORK THREADS STEPS BROKER CUT...

Several cuts are trained in processes forked from this one, which has imported torch and done nothing with it.
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

import splitee.cli  # noqa: F401  # as a device's process begins: without torch's compiler
from splitee.address import BrokerAddress
from splitee.codecs import encode_tensor
from splitee.link import Link
from splitee.messages import Features, RunSpec, encode_labels
from splitee.training import pack_state
from splitee_device.data import DeviceData, PictureSet
from splitee_device.hardware import usable_cores
from splitee_device.memory_watch import MemoryWatch, memory
from splitee_device.outbox import publish_packed
from splitee_device.trainer import CutBatch, open_trainer

INPUT = (3, 32, 32)
LEAST_SECONDS = 4.0  # of measured rounds, after one that is not


def payload(spec: RunSpec, step: int, batch: CutBatch) -> bytes:
    return Features(
        run=spec.run,
        round=1,
        attempt=1,
        phase="train",
        step=step,
        features=encode_tensor(spec.codec, batch.features),
        labels=encode_labels(batch.labels, spec.num_classes),
    ).encode()


def main(network: str, threads: int, steps: int, broker: str, cuts: list[int]) -> None:
    if len(cuts) == 1:
        measure(network, cuts[0], threads, steps, broker)
        return
    gc.freeze()  # else each fork's garbage collector would touch, and so copy, all that torch has made
    for cut in cuts:
        child = os.fork()
        if child == 0:
            measure(network, cut, threads, steps, broker)
            sys.exit()
        _, status = os.waitpid(child, 0)
        if status:
            raise SystemExit(f"cut {cut}: its process ended with status {status}")


def measure(network: str, cut: int, threads: int, steps: int, broker: str) -> None:
    """Train at the cut, in a process that has not yet; prints a line of JSON."""
    torch.set_num_threads(threads)
    spec = RunSpec(protocol=1, run="truth", network=network, num_classes=10, rounds=100, steps=steps)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
    before, watch = memory()["RssAnon"], MemoryWatch()
    generator = np.random.default_rng(1)
    train, held_out = (
        PictureSet(generator.integers(0, 256, (64, *INPUT), np.uint8), generator.integers(0, 10, 64))
        for _ in range(2)
    )
    data = DeviceData(train, held_out, tuple("0123456789"), ())
    window: deque[bytes] = deque(maxlen=spec.window)
    seconds: list[float] = []  # of training steps
    cpu: list[float] = []  # theirs, of all threads
    rounds: list[float] = []
    rounds_cpu: list[float] = []
    with closing(Link(BrokerAddress.parse(broker), f"truth-{cut}")) as link:
        link.open(10)

        def one_round(number: int) -> None:
            started, started_cpu = time.perf_counter(), time.process_time()
            batches = trainer.round(number)
            for step in range(steps):
                begun, begun_cpu = time.perf_counter(), time.process_time()
                batch = next(batches)
                seconds.append(time.perf_counter() - begun)
                cpu.append(time.process_time() - begun_cpu)
                window.append(payload(spec, step, batch))
                publish_packed(link, "truth/features", window[-1])
            link.flush(60)
            rounds.append(time.perf_counter() - started)
            rounds_cpu.append(time.process_time() - started_cpu)

        with watch:
            trainer = open_trainer(spec, cut, "truth", data)
            initial = copy.deepcopy(trainer.state())
            one_round(1)
            pack_state(trainer.state())
            for _ in trainer.evaluate():
                pass
        for known in (seconds, cpu, rounds, rounds_cpu):
            known.clear()
        for number in count(2):
            one_round(number)
            if sum(rounds) >= LEAST_SECONDS:
                break
    del initial
    step = median(seconds)
    if usable_cores() < threads:  # the process waits for its quota at any system call: shared out by CPU time
        step = sum(rounds) * (sum(cpu) / sum(rounds_cpu)) / len(seconds)
    answer = {"cut": cut, "step": step, "memory": watch.peak - before, "round": fmean(rounds)}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], [int(cut) for cut in sys.argv[5:]])
