# SPDX-License-Identifier: Apache-2.0
"""The cost of a device's training step for each input size: time, memory, and bytes on the wire.

    python -m benchmarks.input_sizes [--network resnet18] [--cut 1 --cut 3]

Each cut is trained in a process of its own on one thread: a warm-up, then `--steps` steps of a batch of 32.
Time is CPU time, which other load on the machine disturbs little; memory is the peak of anonymous memory
beyond that of torch itself. docs/reference/inputs.md has the tables.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from statistics import median

import click
import msgspec
import torch
from rich.console import Console
from rich.table import Table

from splitee.networks.split import build_network
from splitee.protocol.rounds import RoundOpen
from splitee.protocol.run_spec import RunSpec
from splitee_device.data.images import open_data
from splitee_device.machine.memory import MemoryWatch, memory
from splitee_device.training.trainer import open_trainer

SIZES = (32, 64, 96, 128, 224)
BATCH = 32
CUTS = 6  # that are tried where none is named, evenly spread


class Cost(msgspec.Struct):
    """Of one batch at one cut: CPU seconds, bytes of memory, bytes on the wire."""

    step: float
    memory: int
    payload: int


def measure(network: str, size: int, cut: int, steps: int) -> Cost:
    """Train at the cut, in this process."""
    torch.set_num_threads(1)
    spec = RunSpec(
        protocol=1,
        run="input-sizes",
        network=network,
        num_classes=10,
        input_shape=(3, size, size),
        rounds=1,
        steps=steps + 1,
        batch_size=BATCH,
    )
    data = open_data("builtin:fashion-mnist", input_shape=spec.input_shape, limit=BATCH)
    before, seconds, payload = memory()["RssAnon"], [], 0
    with MemoryWatch() as watch:
        batches = open_trainer(spec, cut, "pi-1", data).round(1)
        for _ in range(steps + 1):
            begun = time.thread_time()
            batch = next(batches)
            seconds.append(time.thread_time() - begun)
            opened = RoundOpen(run=spec.run, round=1, attempt=1, phase="train")
            payload = len(batch.message(spec, opened, "train", step=0).encode())
    return Cost(median(seconds[1:]), watch.peak - before, payload)


def in_a_fork(network: str, size: int, cut: int, steps: int) -> Cost:
    """`measure` in a process of its own, whose memory is not the next one's. Raises ChildProcessError."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        code = 1
        try:
            os.write(writing, msgspec.json.encode(measure(network, size, cut, steps)))
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        reply = pipe.read()
    os.waitpid(child, 0)
    if not reply:
        raise ChildProcessError(f"{network} at {size} pixels, cut {cut}: the process has ended")
    return msgspec.json.decode(reply, type=Cost)


def spread(count: int) -> list[int]:
    """Up to CUTS of 1..count, the first and the last among them."""
    return sorted({1 + index * (count - 1) // (CUTS - 1) for index in range(CUTS)})


def table(network: str, cuts: Sequence[int], costs: dict[tuple[int, int], Cost]) -> Table:
    found = Table("cut", title=f"{network}, batches of {BATCH}: CPU s a step / MiB of memory / MB sent")
    for size in SIZES:
        found.add_column(f"{size} x {size}", justify="right")
    for cut in cuts:
        cells = [costs[cut, size] for size in SIZES]
        found.add_row(str(cut), *(f"{c.step:.2f} / {c.memory >> 20} / {c.payload / 1e6:.2f}" for c in cells))
    return found


@click.command()
@click.option("--network", default="resnet18", show_default=True)
@click.option("--cut", "cuts", type=int, multiple=True, help=f"Only these cuts.  [default: {CUTS} of them]")
@click.option("--steps", type=click.IntRange(1), default=2, show_default=True)
def main(network: str, cuts: tuple[int, ...], steps: int) -> None:
    """Measure every cut at every size, and print one table."""
    logging.disable(logging.WARNING)  # that the images are enlarged
    described = build_network(network, num_classes=10, input_shape=(3, 96, 96), device="meta")
    chosen = list(cuts) or spread(described.num_layers - 1)
    costs = {(cut, size): in_a_fork(network, size, cut, steps) for cut in chosen for size in SIZES}
    Console(width=120).print(table(network, chosen, costs))


if __name__ == "__main__":
    main()
