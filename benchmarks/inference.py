# SPDX-License-Identifier: Apache-2.0
"""Inference on a device: cold start, speed against torch, adaptive accuracy, a lost server, eight devices.

    python -m benchmarks.inference [--run DIR] [--broker mosquitto]

DIR is the output of `splitee demo --out DIR`; without it, a demo of the default length is trained first.
Prints one JSON line for each claim, with the measurements and whether the target is met.
"""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import torch
from msgspec.structs import replace
from PIL import Image

from splitee.cli.link_options import resolve
from splitee.inference.graphs import ClientModel
from splitee.inference.manifest import CLIENT, TrunkManifest, read_manifest, write_manifest
from splitee.inference.offload import Offload
from splitee.inference.predictor import Predictor
from splitee.inference.trunks import TrunkModels
from splitee.inference.uncertainty import Array, normalized_entropy
from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.mqtt.options import LinkOptions
from splitee.protocol.fleet import ServerStatus
from splitee.protocol.topics import Topics
from splitee.samples.images import normalize
from splitee.samples.storage import Samples
from splitee_export.calibration import MAX_DROP, HeldOut, choose
from splitee_export.combination import HeldOutLogits, fit
from splitee_export.commands.calibrate import evaluate
from splitee_export.graphs import ClientGraph, GraphRunner
from splitee_export.models import export_client, export_trunks
from splitee_export.states import DeviceState, ServerState, read_state
from splitee_lab.local.brokers import open_broker

COLD_STARTS = 9
MAX_START, MAX_MEMORY = 1.0, 120.0  # seconds, MB
RUNS, MIN_SPEED_UP = 300, 1.7
MAX_OFFLOADS = 0.4
PREDICTIONS, TIMEOUT = 1000, 1.0  # seconds
DEVICES, REQUESTS = 8, 200  # requests per device
FLEET = "benchmark"
LONG = 60.0  # seconds
# The peak memory of a forked process includes its parent's, so a small process starts the measured one.
MEASURE = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
seconds = time.perf_counter() - started
print(json.dumps({"seconds": seconds, "mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024}))
"""


@dataclass(frozen=True)
class Exported:
    """Exported models of a run: directories and states by device, and the server's directory."""

    clients: dict[str, Path]
    states: dict[str, DeviceState]
    server: Path

    @property
    def layer2(self) -> str:
        """The device with the cut of the claims, after layer2 of resnet18."""
        return next(device for device, state in self.states.items() if state.cut == 5)


def export_run(run: Path, out: Path) -> Exported:
    """Export the client of each device and the trunks of a demo's run."""
    clients, states = {}, {}
    for path in sorted(path.parent for path in run.glob("pi-*/run.json")):
        state = read_state(path)
        assert isinstance(state, DeviceState)
        export_client(state, Samples.read(path), out / state.device)
        clients[state.device], states[state.device] = out / state.device, state
    server = read_state(run / "server")
    assert isinstance(server, ServerState)
    export_trunks(server, out / "server", list(clients.values()))
    return Exported(clients, states, out / "server")


def cold_start(exported: Exported, directory: Path) -> dict[str, Any]:
    """Wall time and peak memory of a process that makes one prediction."""
    model = exported.clients[exported.layer2]
    image = directory / "image.png"
    Image.fromarray(Samples.read(model).held_out[0].transpose(1, 2, 0)).save(image)
    predict = [sys.executable, "-m", "splitee", "predict", "--model", str(model), str(image)]
    measurements = [
        json.loads(subprocess.check_output([sys.executable, "-c", MEASURE, *predict]))
        for _ in range(COLD_STARTS)
    ]
    seconds, memory = (
        [measurement["seconds"] for measurement in measurements],
        [measurement["mb"] for measurement in measurements],
    )
    return {
        "target": f"cold start <= {MAX_START} s and <= {MAX_MEMORY:.0f} MB",
        "met": median(seconds) <= MAX_START and max(memory) <= MAX_MEMORY,
        "seconds_median": median(seconds),
        "seconds_max": max(seconds),
        "peak_mb": max(memory),
    }


def against_torch(exported: Exported) -> dict[str, Any]:
    """Compare torch and ONNX Runtime in turns: the same client network and exit, batch 1, one thread."""
    state, model = exported.states[exported.layer2], exported.clients[exported.layer2]
    module = ClientGraph(state.client, state.exit).eval()
    onnx = GraphRunner((model / CLIENT).read_bytes(), CLIENT, threads=1)
    inputs = normalize(Samples.read(model).held_out[:RUNS], state.spec.mean, state.spec.std)
    tensor = torch.from_numpy(inputs)
    durations: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        for index in range(RUNS):
            one = slice(index % len(inputs), index % len(inputs) + 1)
            durations[0].append(_milliseconds(partial(module, tensor[one])))
            durations[1].append(_milliseconds(partial(onnx, inputs[one])))
    torch_ms, onnx_ms = (median(times[RUNS // 10 :]) for times in durations)
    return {
        "target": f"ONNX Runtime at least {MIN_SPEED_UP}x torch eager, one thread, batch 1",
        "met": torch_ms / onnx_ms >= MIN_SPEED_UP,
        "torch_ms": torch_ms,
        "onnxruntime_ms": onnx_ms,
        "speed_up": torch_ms / onnx_ms,
    }


def adaptive(exported: Exported) -> dict[str, Any]:
    """Evaluate each half of the held-out images with the threshold and combination chosen on the other."""
    trunks, rows = TrunkModels(exported.server, threads=1), {}
    for device, path in exported.clients.items():
        model, samples, entry = ClientModel(path, threads=1), Samples.read(path), trunks.entry(device)
        assert entry is not None
        name = entry.trunk

        def trunk(features: Array, name: str = name) -> Array:
            return trunks.logits(name, features)

        halves = [
            evaluate(model, trunk, samples.held_out[start::2], samples.labels[start::2]) for start in (0, 1)
        ]
        rows[device] = {"cut": model.manifest.cut, **_cross_validate(halves)}
    return {
        "target": f"adaptive within {MAX_DROP:.0%} of always-trunk at {MAX_OFFLOADS:.0%} offloads or fewer",
        "met": all(
            row["adaptive"] >= row["always_trunk"] - MAX_DROP and row["offload_share"] <= MAX_OFFLOADS
            for row in rows.values()
        ),
        "devices": rows,
    }


def _cross_validate(halves: Sequence[HeldOutLogits]) -> dict[str, Any]:
    fitted = [fit(half) for half in halves]
    uncertainties = [normalized_entropy(half.exit) for half in halves]
    thresholds = [
        choose(HeldOut(values, half.exit_right, result.right), max_drop=MAX_DROP, max_offload=None).threshold
        for values, half, result in zip(uncertainties, halves, fitted, strict=True)
    ]
    local = np.concatenate(
        [values <= threshold for values, threshold in zip(uncertainties, reversed(thresholds), strict=True)]
    )
    exit_right = np.concatenate([half.exit_right for half in halves])
    offloaded_right = np.concatenate(
        [half.right(result.combination) for half, result in zip(halves, reversed(fitted), strict=True)]
    )
    return {
        "images": len(local),
        "thresholds": thresholds,
        "combinations": [[result.combination.exit, result.combination.trunk] for result in fitted],
        "always_local": float(exit_right.mean()),
        "always_trunk": float(np.concatenate([half.trunk_right for half in halves]).mean()),
        "always_offloaded": float(offloaded_right.mean()),
        "adaptive": float(np.where(local, exit_right, offloaded_right).mean()),
        "offload_share": float(1 - local.mean()),
    }


def lost_server(exported: Exported, options: LinkOptions, how: signal.Signals) -> dict[str, Any]:
    """Kill or freeze the server half-way through predictions that are all offloaded."""
    device = exported.layer2
    model = ClientModel(exported.clients[device], threads=1)
    images = Samples.read(exported.clients[device]).held_out
    predictions = []
    with serving(exported.server, options) as server, offloading(model, options, device) as offload:
        predictor = Predictor(model, threshold=0.0, trunk=offload)
        for index in range(PREDICTIONS):
            if index == PREDICTIONS // 2:
                server.process.send_signal(how)
            predictions.append(predictor(images[index % len(images)]))
    sources = [prediction.source for prediction in predictions]
    longest = max(prediction.milliseconds for prediction in predictions)
    fallbacks = sources[PREDICTIONS // 2 :].count("local-fallback")
    return {
        "target": f"{PREDICTIONS} predictions, none later than the time-out, fallbacks marked",
        "met": len(predictions) == PREDICTIONS and longest <= 1000 * TIMEOUT and fallbacks > 0,
        "signal": how.name,
        "timeout_ms": 1000 * TIMEOUT,
        "latest_ms": longest,
        "sources": {source: sources.count(source) for source in sorted(set(sources))},
    }


def eight_at_once(exported: Exported, options: LinkOptions, directory: Path) -> dict[str, Any]:
    """Latency of requests from DEVICES devices at once; each waits for a reply before its next request."""
    device = exported.layer2
    model = ClientModel(exported.clients[device], threads=1)
    features = model(Samples.read(exported.clients[device]).held_out[:64])[0]
    names = [f"device-{number}" for number in range(1, DEVICES + 1)]
    manifest = read_manifest(exported.server, TrunkManifest)
    directory.mkdir()
    for name in manifest.sha256:
        (directory / name).symlink_to(exported.server / name)
    write_manifest(directory, replace(manifest, devices=dict.fromkeys(names, manifest.devices[device])))
    milliseconds: list[float] = []
    missed = 0

    def request(name: str) -> None:
        nonlocal missed
        with offloading(model, options, name) as offload:
            ready.wait(LONG)
            for number in range(REQUESTS):
                sample = features[number % len(features)][None]
                started = time.perf_counter()
                prediction = offload.logits(sample)
                milliseconds.append(1000 * (time.perf_counter() - started))
                missed += prediction is None

    ready = threading.Barrier(DEVICES)
    with serving(directory, options) as server:
        threads = [threading.Thread(target=request, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    requests, passes = server.counts()
    return {
        "target": "p99 is reported; requests that arrive together share a forward pass",
        "met": missed == 0 and passes < requests,
        "devices": DEVICES,
        "p50_ms": float(np.quantile(milliseconds, 0.5)),
        "p99_ms": float(np.quantile(milliseconds, 0.99)),
        "requests": requests,
        "passes": passes,
        "unanswered": missed,
    }


class Server:
    """A `splitee serve` process, and its published status."""

    def __init__(self, model: Path, options: LinkOptions) -> None:
        self._topic = Topics(FLEET).server_status
        self._link = Link(options.address, f"watches-{time.time_ns()}")
        self._link.subscribe(self._topic)
        self._link.open(LONG)
        self._doing = ""
        command = [sys.executable, "-m", "splitee", "serve", "--model", str(model), "--fleet", FLEET]
        self.process = subprocess.Popen(
            [*command, "--broker", str(options.address)], stderr=subprocess.DEVNULL
        )
        self._await_state("online")

    def counts(self) -> tuple[int, int]:
        """Number of requests and of forward passes, after the server has ended."""
        words = self._doing.split()  # "serving: N requests in M passes"
        return int(words[1]), int(words[4])

    def end(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        self.process.wait(LONG)
        self._await_state("offline")
        self._link.close()

    def _await_state(self, state: str) -> None:
        """Wait until the server publishes `state`; retained messages of earlier processes are ignored."""
        while True:
            event = self._link.receive(LONG)
            assert event is not None, f"the server is not {state} within {LONG} s"
            if isinstance(event, Message) and not event.retained:
                status = ServerStatus.decode(event.payload)
                self._doing = status.doing or self._doing
                if status.state == state:
                    return


@contextmanager
def serving(model: Path, options: LinkOptions) -> Iterator[Server]:
    server = Server(model, options)
    try:
        yield server
    finally:
        server.end()


@contextmanager
def offloading(model: ClientModel, options: LinkOptions, device: str) -> Iterator[Offload]:
    offload = Offload(options, model.manifest, device=device, timeout=TIMEOUT)
    offload.open()
    try:
        yield offload
    finally:
        offload.close()


def _milliseconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)


@click.command()
@click.option("--run", "run_path", type=click.Path(path_type=Path), help="Output of `splitee demo`.")
@click.option("--broker", default="mosquitto", show_default=True, help="mosquitto, embedded or an address.")
def main(run_path: Path | None, broker: str) -> None:
    """Measure inference; print one JSON line per claim."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        run = run_path or _train(directory / "demo")
        exported = export_run(run, directory / "models")
        with open_broker(broker, directory) as running:
            options = resolve(str(running.address), FLEET, LONG)
            measures: dict[str, Callable[[], dict[str, Any]]] = {
                "cold_start": lambda: cold_start(exported, directory),
                "against_torch": lambda: against_torch(exported),
                "adaptive": lambda: adaptive(exported),
                "server_killed": lambda: lost_server(exported, options, signal.SIGKILL),
                "server_silent": lambda: lost_server(exported, options, signal.SIGSTOP),
                "eight_at_once": lambda: eight_at_once(exported, options, directory / "eight"),
            }
            for name, measure in measures.items():
                click.echo(json.dumps({"benchmark": "inference", "measure": name, **measure()}))


def _train(out: Path) -> Path:
    command = [sys.executable, "-m", "splitee", "demo", "--no-baselines", "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return out


if __name__ == "__main__":
    main()
