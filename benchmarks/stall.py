# SPDX-License-Identifier: Apache-2.0
"""How much does memory grow while the server is stopped during a round? Compared with an undisturbed run.

    python -m benchmarks.stall [--seconds 60] [--strategy sequential|averaging]

A real fleet trains with big batches on a real Mosquitto. In the middle of round 3 the server receives
SIGSTOP, and after --seconds SIGCONT; round 4 shows that training goes on. Memory of every process, including
the broker, is measured throughout. Prints one JSON line, and exits with 1 if a figure is out of its bounds.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from benchmarks.peak_memory import Bytes, PeakMemory, megabytes
from benchmarks.real_fleet import (
    CUTS,
    TOPICS,
    Fleet,
    Settings,
    out_option,
    undisturbed_run,
    working_directory,
)
from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.networks.split import build_network
from splitee.protocol.rounds import Ack
from splitee.protocol.run_spec import RunSpec

SLACK = 64 << 20  # bytes by which any process may grow beyond the window's
STEPS = 16  # batches per device and round: more than the window holds
BATCH = 8
WINDOW = 8


@dataclass(frozen=True)
class BigBatches(Settings):
    """Batches with features of up to 1 MiB: the resnet's variant for small images, cut early."""

    def server(self, strategy: str) -> list[str]:
        sizes = ("--steps", str(STEPS), "--batch-size", str(BATCH), "--window", str(WINDOW))
        return [*super().server(strategy), "--stem", "small", *sizes]


class Observer:
    """Counts trained batches and published features, and samples the memory of all processes."""

    def __init__(self, fleet: Fleet, link: Link) -> None:
        self.memory = PeakMemory(fleet.pids)
        self.trained = (0, 0)  # latest round, and the most trained batches of a device in it
        self.published: Counter[str] = Counter()  # bytes of features, by device
        self._fleet = fleet
        self._link = link
        leaves = ("inbox/ack", "features")
        link.subscribe(*(TOPICS.all_devices(leaf) for leaf in leaves))
        link.open(10)

    def until(self, condition: Callable[[], bool]) -> None:
        self._fleet.until(condition, self._poll)

    def _poll(self) -> None:
        event = self._link.receive(0.2)
        if isinstance(event, Message):
            self._on_message(event)
        self.memory.sample()

    def _on_message(self, message: Message) -> None:
        device, leaf = TOPICS.parse_device(message.topic) or ("", "")
        if leaf == "features":
            self.published[device] += len(message.payload)
        elif leaf == "inbox/ack":
            ack = Ack.decode(message.payload)
            if ack.phase == "train":
                self.trained = max(self.trained, (ack.round, ack.step))


@dataclass(frozen=True)
class Stalled:
    """The figures of a run whose server was stopped."""

    report: dict[str, Any]
    growth: Bytes  # by process
    published: Bytes  # while the server was stopped, by device


def stalled_run(directory: Path, strategy: str, settings: Settings, seconds: float) -> Stalled:
    """Run a fleet to its end; its server is stopped for `seconds` in the middle of round 3."""
    with (
        Fleet(directory, settings.server(strategy), settings.devices()) as fleet,
        closing(Link(fleet.broker.address, "observer")) as link,
    ):
        observer = Observer(fleet, link)
        memory = observer.memory
        observer.until(lambda: observer.trained >= (1, 1))
        memory.peaks()  # then over two commits: the peak of a single one varies by some 80 MB
        observer.until(lambda: observer.trained >= (3, STEPS // 4))
        server = fleet.parts["server"].process
        assert server is not None
        server.send_signal(signal.SIGSTOP)
        before = memory.peaks()
        observer.published.clear()
        end = time.monotonic() + seconds
        observer.until(lambda: time.monotonic() >= end)
        during, published = memory.peaks(), dict(observer.published)
        server.send_signal(signal.SIGCONT)
        observer.until(lambda: observer.trained >= (4, 1))
        after = memory.peaks()  # without the end: an ending process loads pages of libraries again
        observer.until(lambda: fleet.finished)
        report = fleet.report()
    growth = {name: max(during[name], after[name], before[name]) - before[name] for name in before}
    return Stalled(report, growth, published)


def windows() -> Bytes:
    """The most bytes of unacknowledged features, by device."""
    spec = RunSpec(protocol=1, run="", network="resnet18", num_classes=10, rounds=1)
    stages = build_network(spec.network, num_classes=10, stem="small", seed=0).stages
    result = {}
    for device, cut in CUTS.items():
        channels, height, width = stages[cut - 1].feature_shape
        batch = 2 * BATCH * channels * height * width  # fp16
        result[device] = min(WINDOW * batch, spec.window_bytes + batch)
    return result


def compare(calm: dict[str, Any], stalled: Stalled, seconds: float) -> dict[str, Any]:
    """The benchmark's figures; MB are 2^20 bytes."""
    window = windows()
    all_windows = sum(window.values())
    bounds = {name: window.get(name, all_windows) + SLACK for name in stalled.growth}
    result: dict[str, Any] = {
        "benchmark": "stall",
        "strategy": calm["strategy"],
        "seconds": seconds,
        "growth_mb": megabytes(stalled.growth),
        "bound_mb": megabytes(bounds),
        "published_meanwhile_mb": megabytes(stalled.published),
        "window_mb": megabytes(window),
        "same_weights": calm["weights_sha256"] == stalled.report["weights_sha256"],
        "weights_sha256": stalled.report["weights_sha256"],
        "batches_trained": [calm["batches_trained"], stalled.report["batches_trained"]],
        "unexpected_exits": stalled.report["unexpected_exits"],
    }
    result["passed"] = (
        result["same_weights"]
        and calm["batches_trained"] == stalled.report["batches_trained"]
        and all(stalled.growth[name] <= bound for name, bound in bounds.items())
        and all(stalled.published[name] <= 1.01 * window[name] for name in stalled.published)
        and not result["unexpected_exits"]
    )
    return result


@click.command()
@click.option("--seconds", default=60.0, show_default=True, help="Seconds for which the server is stopped.")
@click.option("--strategy", type=click.Choice(["sequential", "averaging"]), default="sequential")
@click.option("--rounds", type=click.IntRange(min=4), default=4, show_default=True)
@out_option
def main(seconds: float, strategy: str, rounds: int, out: Path | None) -> None:
    """Stop a fleet's server for a while; measure memory, and compare with an undisturbed run."""
    console = Console(stderr=True)
    settings = BigBatches(rounds, samples=96)
    with working_directory(out) as directory:
        with console.status("undisturbed run"):
            calm = undisturbed_run(directory / "calm", strategy, settings)
        with console.status(f"server stopped for {seconds:.0f} s"):
            stalled = stalled_run(directory / "stalled", strategy, settings, seconds)
    result = compare(calm, stalled, seconds)
    click.echo(json.dumps(result))
    sys.exit(not result["passed"])


if __name__ == "__main__":
    main()
