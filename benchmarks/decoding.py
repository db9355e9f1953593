# SPDX-License-Identifier: Apache-2.0
"""The cost of training on more photographs than fit in memory: peak memory, and decoding's share of CPU time.

    python -m benchmarks.decoding --source TRAIN.parquet --folder /tmp/photographs

It makes a folder of JPEG files of 128 x 96 pixels from the images of a Parquet file, unless it exists. It
trains the first steps of a round on them with one thread on one core, like `splitee device` on a device
with 1 GiB: the images stay encoded. Decoding's share is the CPU time of the decoding threads, divided by that
of the process. The time for which training waits for images is printed, too. To limit the memory as well,
start it in a control group of 1 GiB. It exits with 1 if a bound is missed.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import islice
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image

import splitee.cli.main  # noqa: F401  # as in a device's process: torch without its compiler
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import PROTOCOL
from splitee_device.data.encoded import THREADS
from splitee_device.data.image_sets import ImageSet, LabelledImages, Numbers, Read
from splitee_device.data.images import DeviceData, open_data
from splitee_device.data.parquet import ParquetImages
from splitee_device.data.storage import Storage, most_for_images
from splitee_device.machine.memory import memory
from splitee_device.training.trainer import open_trainer

SIZE = (128, 96)  # pixels of a photograph: width and height
WARM_UP = 3  # steps
MOST_MEMORY = 1 << 30  # bytes
MOST_SHARE = 0.10  # of the CPU time of a step


@dataclass(frozen=True)
class Costs:
    """Seconds of all steps: wall time, waiting for images, CPU of the process and of the decoding threads."""

    wall: float
    waited: float
    cpu: float
    decoding: float


def make_photographs(source: Path, folder: Path, count: int) -> None:
    """Write up to `count` images of the Parquet file as JPEG files in class folders, unless they exist."""
    if folder.exists():
        return
    parquet = ParquetImages(source)
    names = parquet.class_names or ()
    unfinished = folder.with_name(folder.name + ".new")
    for name in names:
        (unfinished / name).mkdir(parents=True)
    for row, encoded in parquet.encoded(np.arange(min(count, len(parquet.labels)))):
        image = Image.open(BytesIO(encoded)).resize(SIZE, Image.Resampling.BICUBIC)
        image.save(unfinished / names[parquet.labels[row]] / f"{row:05}.jpg", quality=90)
    unfinished.rename(folder)


def costs_of(spec: RunSpec, cut: int, data: DeviceData) -> Costs:
    """Train `spec.steps` steps, and measure those after the first WARM_UP."""
    images = TimedImages(data.train)
    trainer = open_trainer(spec, cut, "pi-1", replace(data, train=images))
    batches = trainer.round(1)
    for _ in islice(batches, WARM_UP):
        pass
    images.waited = 0.0
    wall, cpu, decoding = time.perf_counter(), time.process_time(), decoding_cpu()
    for _ in batches:
        pass
    return Costs(
        time.perf_counter() - wall, images.waited, time.process_time() - cpu, decoding_cpu() - decoding
    )


class TimedImages(LabelledImages):
    """An image set that measures how long its batches are waited for; `waited`: in seconds."""

    def __init__(self, images: LabelledImages) -> None:
        self._set = images
        self.labels = images.labels
        self.waited = 0.0

    def read(self, numbers: Numbers) -> Read:
        return self._set.read(numbers)

    def name(self, number: int) -> str:
        return self._set.name(number)

    def in_memory(self) -> ImageSet:
        return self._set.in_memory()

    def batches(self, order: Iterable[Numbers]) -> Iterator[Read]:
        batches = self._set.batches(order)
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - started
            if batch is None:
                return
            yield batch


def decoding_cpu() -> float:
    """CPU seconds of the decoding threads so far."""
    threads = (thread for thread in threading.enumerate() if thread.name.startswith(THREADS))
    files = (Path(f"/proc/self/task/{thread.native_id}/schedstat") for thread in threads)
    return sum(int(file.read_text().split()[0]) for file in files) / 1e9


@click.command()
@click.option("--source", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--folder", type=click.Path(path_type=Path), required=True)
@click.option("--count", default=50_000, show_default=True)
@click.option("--network", default="mobilenet_v3_small", show_default=True)
@click.option("--cut", default=14, show_default=True)
@click.option("--side", default=96, show_default=True)
@click.option("--steps", default=60, show_default=True)
@click.option("--workers", default=1, show_default=True)
def main(
    source: Path,
    folder: Path,
    count: int,
    network: str,
    cut: int,
    side: int,
    steps: int,
    workers: int,
) -> None:
    """Measure peak memory and decoding's share of the CPU time."""
    make_photographs(source, folder, count)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    spec = RunSpec(
        protocol=PROTOCOL,
        run="decoding",
        network=network,
        num_classes=100,
        input_shape=(3, side, side),
        rounds=1,
        steps=steps + WARM_UP,
    )
    storage = Storage(most_for_images(MOST_MEMORY), workers, folder.parent)
    started = time.perf_counter()
    data = open_data(str(folder), input_shape=spec.input_shape, storage=storage)
    click.echo(
        f"{len(data.train)} images were opened, and each read once, in {time.perf_counter() - started:.0f} s"
    )
    costs = costs_of(spec, cut, data)
    peak, share = memory()["VmHWM"], costs.decoding / costs.cpu
    click.echo(
        f"{network}, cut {cut}, {side} pixels: a step takes {1000 * costs.wall / steps:.1f} ms, "
        f"{1000 * costs.cpu / steps:.1f} ms of CPU"
    )
    click.echo(
        f"decoding takes {share:.1%} of the CPU time (at most {MOST_SHARE:.0%}); training waits for images "
        f"{costs.waited / costs.wall:.1%} of the wall time"
    )
    click.echo(f"peak resident memory: {peak / 2**20:.0f} MiB (at most {MOST_MEMORY / 2**20:.0f})")
    sys.exit(share > MOST_SHARE or peak > MOST_MEMORY)


if __name__ == "__main__":
    main()
