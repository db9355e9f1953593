# SPDX-License-Identifier: Apache-2.0
"""How many images per second does a device classify on one core, in the service and with the model alone?

    python -m benchmarks.service_throughput [--source stdin] [--size 640x480] [--frames 900]

A real `splitee infer` with mobilenet_v3_small at 96 pixels, cut at its last stage, bound to one core and with
one thread, reads JPEGs from a pipe (or a folder) as fast as it can, and publishes each prediction on a real
Mosquitto. The CPU time per image counts, which other load on the machine disturbs less than wall time: 1 /
CPU seconds is the number of images per second on a core of its own. The same run measures in this process, on
the same core, with one thread and without the service, how long it takes to read and prepare an image, and to
compute a forward pass of one and of several images.

Then another service receives 30 images per second, like from a camera, and must not drop any.

Prints one JSON line, and exits with 1 if fewer than MIN images per second are classified, or one is dropped.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import psutil
import torch
from PIL import Image

from splitee.inference.graphs import ClientModel
from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.networks.split import build_for
from splitee.protocol import routes
from splitee.protocol.inference import Serving
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import Topics
from splitee.samples.images import load_image
from splitee.training.weights import client_model
from splitee_device.inference.service import LARGEST_BATCH
from splitee_export.models import export_client
from splitee_export.states import device_state
from splitee_lab.local.brokers import RunningBroker, open_broker

MIN = 30.0  # images per CPU second
RATE = 30.0  # images per second of the camera
REPEATS = 200
DEVICE, TOPICS = "pi-1", Topics("throughput")
LONG = 120.0  # seconds
VARIANTS = 16  # different images


def export_model(out: Path) -> ClientModel:
    """Export the untrained network: its speed does not depend on its weights."""
    spec = RunSpec(
        protocol=1,
        run="run-throughput",
        network="mobilenet_v3_small",
        num_classes=3,
        class_names=("bee", "none", "wasp"),
        rounds=1,
        input_shape=(3, 96, 96),
    )
    network = build_for(spec)
    cut = len(network.stages) - 1
    state = device_state(spec, 1, DEVICE, cut, client_model(network, cut, spec).state_dict())
    export_client(state, None, out)
    return ClientModel(out, threads=1)


def jpegs(size: tuple[int, int]) -> list[bytes]:
    """Synthetic JPEGs of `size` (width, height), with texture; about as large as those of a camera."""
    generator, images = np.random.default_rng(0), []
    for _ in range(VARIANTS):
        coarse = generator.integers(0, 256, (size[1] // 16, size[0] // 16, 3), dtype=np.uint8)
        image = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), np.float32)
        image = (image + generator.normal(0, 6, image.shape)).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=85)
        images.append(file.getvalue())
    return images


def cpu_ms(work: Callable[[int], object]) -> float:
    """Median CPU milliseconds of one call of `work`, which gets the number of the call."""
    taken = []
    for index in range(REPEATS):
        started = time.process_time()
        work(index)
        taken.append(1000 * (time.process_time() - started))
    return median(taken)


def alone(model: ClientModel, images: list[bytes]) -> dict[str, float]:
    """CPU milliseconds per image of preparation and model, on the service's core but without a service."""
    prepare = model.manifest.preparation(None)
    one = load_image(images[0], prepare)[None]
    several = np.concatenate([one] * LARGEST_BATCH)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        return {
            "prepare_ms": cpu_ms(lambda index: load_image(images[index % VARIANTS], prepare)),
            "model_ms": cpu_ms(lambda _: model(one)),
            "model_of_several_ms": cpu_ms(lambda _: model(several)) / LARGEST_BATCH,
        }
    finally:
        os.sched_setaffinity(0, cores)


class Watcher:
    """Counts predictions, and keeps the latest Serving message of the device while it is online."""

    def __init__(self, broker: RunningBroker) -> None:
        self.predictions = 0
        self.serving: Serving | None = None
        self._link = Link(broker.address, "watches-throughput", capacity=1 << 16)
        self._predictions = routes.PREDICTIONS.topic(TOPICS, DEVICE)
        self._link.subscribe(self._predictions, routes.SERVING.topic(TOPICS, DEVICE))
        self._link.open(LONG)

    def read(self) -> None:
        while (event := self._link.receive(0.02)) is not None:
            if isinstance(event, Message) and event.topic == self._predictions:
                self.predictions += 1
            elif isinstance(event, Message):
                serving = Serving.decode(event.payload)
                self.serving = serving if serving.state == "online" else self.serving

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LONG
        while not condition():
            assert time.monotonic() < deadline, (
                f"not within {LONG:.0f} s: {self.predictions} predictions received"
            )
            self.read()

    def close(self) -> None:
        self._link.close()


@contextmanager
def service(broker: RunningBroker, models: Path, *source: str) -> Iterator[subprocess.Popen[bytes]]:
    """`splitee infer` bound to one core."""
    connection = ("--broker", str(broker.address), "--fleet", TOPICS.fleet, "--id", DEVICE)
    flags = ("--models", str(models), "--model", str(models.parent / "model"), "--threads", "1", "--quiet")
    process = subprocess.Popen(
        [sys.executable, "-m", "splitee", "infer", *connection, *flags, *source, "--threshold", "1"],
        stdin=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    os.sched_setaffinity(process.pid, {max(os.sched_getaffinity(0))})
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(LONG)


def feed(process: subprocess.Popen[bytes], images: list[bytes], count: int, rate: float | None) -> None:
    """Write `count` images to the pipe of `process`: `rate` per second, or as fast as it reads them."""
    assert process.stdin is not None
    due = time.monotonic()
    for index in range(count):
        if rate is not None:
            due += 1 / rate
            time.sleep(max(due - time.monotonic(), 0))
        process.stdin.write(images[index % len(images)])
        process.stdin.flush()


def fill(folder: Path, images: list[bytes], count: int) -> None:
    for index in range(count):
        (folder / f"{index:06}.jpg").write_bytes(images[index % len(images)])


def measure(
    broker: RunningBroker, directory: Path, images: list[bytes], count: int, source: str, rate: float | None
) -> dict[str, Any]:
    """CPU time, speed and memory of a service for `count` images, from the first prediction on."""
    folder = directory / "watched"
    folder.mkdir(exist_ok=True)
    flags = ("--watch", str(folder)) if source == "folder" else ("--stdin", "--every", "0")
    flags = (*flags, "--backlog", "0") if rate is None else flags
    watcher = Watcher(broker)
    with service(broker, directory / "models", *flags) as process:
        usage = psutil.Process(process.pid)
        watcher.wait_for(lambda: watcher.serving is not None)
        feeding = threading.Thread(
            target=fill if source == "folder" else feed,
            args=(folder, images, count) if source == "folder" else (process, images, count, rate),
        )
        feeding.start()
        watcher.wait_for(lambda: watcher.predictions > 0)
        first, before, began = watcher.predictions, sum(usage.cpu_times()[:2]), time.monotonic()
        watcher.wait_for(lambda: not feeding.is_alive())
        if rate is None:
            watcher.wait_for(lambda: watcher.predictions >= count)
        seconds = time.monotonic() - began
        watcher.wait_for(lambda: settled(watcher))
        cpu = sum(usage.cpu_times()[:2]) - before
        memory = usage.memory_info().rss
        counted = watcher.predictions - first
    watcher.close()
    return {
        "cpu_ms": 1000 * cpu / counted,
        "images_a_second_of_a_core": counted / cpu,
        "images_a_second_by_the_clock": counted / seconds,
        "dropped": count - watcher.predictions,
        "rss_mb": memory / 1e6,
    }


def settled(watcher: Watcher) -> bool:
    """Whether no prediction is received for 2 seconds."""
    before, until = watcher.predictions, time.monotonic() + 2
    while time.monotonic() < until:
        watcher.read()
    return watcher.predictions == before


@click.command()
@click.option("--source", type=click.Choice(["stdin", "folder"]), default="stdin")
@click.option("--size", default="640x480", help="Size of the images, WIDTHxHEIGHT.")
@click.option("--frames", default=900)
def main(source: str, size: str, frames: int) -> None:
    """Measure how many images per second a device classifies on one core."""
    torch.set_num_threads(1)
    width, height = map(int, size.split("x"))
    images = jpegs((width, height))
    with tempfile.TemporaryDirectory() as name, open_broker("mosquitto", Path(name)) as broker:
        directory = Path(name)
        model = export_model(directory / "model")
        parts = alone(model, images)
        fastest = measure(broker, directory, images, frames, source, None)
        camera = measure(broker, directory, images, frames // 3, "stdin", RATE)
        parts_again = alone(model, images)
    parts = {key: min(value, parts_again[key]) for key, value in parts.items()}
    rest = fastest["cpu_ms"] - parts["prepare_ms"] - parts["model_of_several_ms"]
    result = {
        "target": f"{MIN:.0f} images a second of one core, and none dropped of {RATE:.0f} a second",
        "met": fastest["images_a_second_of_a_core"] >= MIN and camera["dropped"] == 0,
        "source": source,
        "jpeg": {"size": size, "kb": round(len(images[0]) / 1000)},
        "service": fastest,
        "alone": parts,
        "shares": {
            "prepare": parts["prepare_ms"] / fastest["cpu_ms"],
            "model": parts["model_of_several_ms"] / fastest["cpu_ms"],
            "rest": rest / fastest["cpu_ms"],
        },
        "limit_of_the_model": 1000 / parts["model_ms"],
        "at_30_a_second": camera,
    }
    print(json.dumps(result, default=float))
    sys.exit(not result["met"])


if __name__ == "__main__":
    main()
