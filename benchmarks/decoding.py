# SPDX-License-Identifier: Apache-2.0
"""The cost of training on more photographs than fit in memory: peak memory, and decoding's share of a step.

    python -m benchmarks.decoding --source TRAIN.parquet --folder /tmp/photographs

It makes a folder of JPEG files of 128 x 96 from the images of a Parquet file, if there is none, and trains
the first steps of a round on it, with one thread on one core, like `splitee device` on a device with 1 GiB:
the images stay encoded. Decoding's share is the CPU time of the decoding threads, as a part of the process's.
The time for which training waits for them is printed, too. To limit the memory as well, start it in a control
group of 1 GiB. It exits with 1 if a bound is missed.
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

import splitee.cli.main  # noqa: F401  # as a device's process begins: without torch's compiler
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
MOST_SHARE = 0.10  # of a step


@dataclass(frozen=True)
class Costs:
    """Seconds of all steps: by the clock, waiting for images, CPU of the process and of decoding threads."""

    wall: float
    waited: float
    cpu: float
    decoding: float


def make_photographs(source: Path, folder: Path, count: int) -> None:
    """`count` images of the Parquet file as JPEG files in class folders."""
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
    """Trains `spec.steps` steps; the first WARM_UP of them do not count."""
    images = Watched(data.train)
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


class Watched(LabelledImages):
    """Image set of which is known how long its batches were waited for."""

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
            found = next(batches, None)
            self.waited += time.perf_counter() - started
            if found is None:
                return
            yield found


def decoding_cpu() -> float:
    """Seconds of CPU that the decoding threads have taken so far."""
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
    """Measure memory and decoding's share of a step."""
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
        f"{len(data.train)} images opened, and each read once, in {time.perf_counter() - started:.0f} s"
    )
    costs = costs_of(spec, cut, data)
    peak, share = memory()["VmHWM"], costs.decoding / costs.cpu
    click.echo(
        f"{network}, cut {cut}, {side} pixels: a step takes {1000 * costs.wall / steps:.1f} ms, "
        f"{1000 * costs.cpu / steps:.1f} ms of CPU"
    )
    click.echo(
        f"decoding takes {share:.1%} of it (at most {MOST_SHARE:.0%}); it is waited for during "
        f"{costs.waited / costs.wall:.1%} of the time"
    )
    click.echo(f"peak of resident memory: {peak / 2**20:.0f} MiB (at most {MOST_MEMORY / 2**20:.0f})")
    sys.exit(share > MOST_SHARE or peak > MOST_MEMORY)


if __name__ == "__main__":
    main()
