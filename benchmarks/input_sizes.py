# SPDX-License-Identifier: Apache-2.0
"""The cost of a device's training step for each input size: CPU time, memory, and bytes on the wire.

    python -m benchmarks.input_sizes [--network resnet18] [--cut 1 --cut 3]

Each cut and size is trained in a separate process with one thread: a step of warm-up, then `--steps` steps of
a batch of 32. CPU time varies little with other load on the machine. Memory is the peak of anonymous memory
beyond that before training. docs/reference/inputs.md has the tables.
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
CUTS = 6  # number of evenly spread cuts, unless `--cut` is given


class Cost(msgspec.Struct):
    """The cost of one batch at one cut: CPU seconds, bytes of memory, bytes on the wire."""

    step: float
    memory: int
    payload: int


def measure(network: str, size: int, cut: int, steps: int) -> Cost:
    """Train at the cut in this process; return the median step's CPU time, the memory and the payload."""
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
            started = time.thread_time()
            batch = next(batches)
            seconds.append(time.thread_time() - started)
            opened = RoundOpen(run=spec.run, round=1, attempt=1, phase="train")
            payload = len(batch.message(spec, opened, "train", step=0).encode())
    return Cost(median(seconds[1:]), watch.peak - before, payload)


def in_fork(network: str, size: int, cut: int, steps: int) -> Cost:
    """Run `measure` in a forked process. Raises ChildProcessError: the process ended without a result."""
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
        raise ChildProcessError(f"{network} at {size} pixels, cut {cut}: the process ended without a result")
    return msgspec.json.decode(reply, type=Cost)


def spread(count: int) -> list[int]:
    """Up to CUTS evenly spread numbers of 1..count, including the first and the last."""
    return sorted({1 + index * (count - 1) // (CUTS - 1) for index in range(CUTS)})


def table(network: str, cuts: Sequence[int], costs: dict[tuple[int, int], Cost]) -> Table:
    grid = Table("cut", title=f"{network}, batches of {BATCH}: CPU s per step / MiB of memory / MB sent")
    for size in SIZES:
        grid.add_column(f"{size} x {size}", justify="right")
    for cut in cuts:
        cells = [costs[cut, size] for size in SIZES]
        grid.add_row(str(cut), *(f"{c.step:.2f} / {c.memory >> 20} / {c.payload / 1e6:.2f}" for c in cells))
    return grid


@click.command()
@click.option("--network", default="resnet18", show_default=True)
@click.option("--cut", "cuts", type=int, multiple=True, help=f"Only these cuts.  [default: {CUTS} of them]")
@click.option("--steps", type=click.IntRange(1), default=2, show_default=True)
def main(network: str, cuts: tuple[int, ...], steps: int) -> None:
    """Measure each cut at each size, and print a table."""
    logging.disable(logging.WARNING)  # hides the warning that images are enlarged
    model = build_network(network, num_classes=10, input_shape=(3, 96, 96), device="meta")
    chosen = list(cuts) or spread(model.num_layers - 1)
    costs = {(cut, size): in_fork(network, size, cut, steps) for cut in chosen for size in SIZES}
    Console(width=120).print(table(network, chosen, costs))


if __name__ == "__main__":
    main()
