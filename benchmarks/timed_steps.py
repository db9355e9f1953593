# SPDX-License-Identifier: Apache-2.0
"""Do unequal devices reach an accuracy sooner with rounds of equal time than with equal numbers of steps?

    python -m benchmarks.timed_steps [--seconds 10] [--limit 120] [--target 0.7] [--seeds 1] [--scale 1]

A real fleet on a real Mosquitto trains a tiny network on the built-in Fashion-MNIST, cut at the same place on
three devices. From the opening of the first round, control groups (as root) limit them to 100, 40 and 15 % of
a core; --scale reduces these shares if there is other load on the machine. First the fleet runs with
`--steps time:SECONDS`. Then, with the same seed, each device trains a third of the batches that this fleet
trained per round. Each side runs for --limit seconds from the opening of its first round, at a constant
learning rate. The benchmark compares the trunk's accuracy on held-out images at the end, and the time until
it reached --target.
Prints a JSON line for each side, and one that compares them. Only ratios within one call are comparable.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from benchmarks.racing.job import SHARES
from benchmarks.racing.processes import Processes, require_shares
from benchmarks.real_fleet import out_option, working_directory
from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.protocol.fleet import Metrics
from splitee.protocol.rounds import RoundOpen
from splitee.protocol.topics import Topics
from splitee_lab.local.brokers import mosquitto
from splitee_lab.local.forked import without_settings
from splitee_lab.local.processes import signals_unwind

FLEET = "timed"
TOPICS = Topics(FLEET)
NETWORK = "benchmarks.tiny:network"
CUT = 2
DEVICES = {f"pi-{number}": share for number, share in enumerate(SHARES, start=1)}  # of a core
SETTINGS = {
    "--network": NETWORK,
    "--input": "3x32x32",
    "--devices": len(SHARES),
    "--rounds": 10_000,
    "--schedule": "constant",
    "--warm-up": 0,
    "--batch-size": 8,
}
CONNECT = 30.0  # seconds
STARTING = 300.0  # seconds, the most until the first round is opened
TICK = 0.1  # seconds


@dataclass
class Side:
    """A fleet's result. `rounds`: seconds, accuracy and batches so far, after each evaluated round."""

    strategy: str
    seed: int
    steps: str
    rounds: list[tuple[float, float, int]] = field(default_factory=list)

    def reached(self, target: float) -> float | None:
        """Seconds until the first round with an accuracy of `target` or more; None: there was none."""
        return next((seconds for seconds, accuracy, _ in self.rounds if accuracy >= target), None)

    def record(self, target: float) -> dict[str, Any]:
        """The figures for JSON."""
        reached = self.reached(target)
        return {
            "benchmark": "timed_steps",
            "strategy": self.strategy,
            "seed": self.seed,
            "steps": self.steps,
            "rounds": len(self.rounds),
            "batches": self.rounds[-1][2],
            "seconds": round(self.rounds[-1][0], 1),
            "accuracy": round(self.rounds[-1][1], 4),
            "target": target,
            "seconds_to_target": reached and round(reached, 1),
            "course": [(round(seconds, 1), round(accuracy, 3)) for seconds, accuracy, _ in self.rounds],
        }

    @property
    def batches_a_round(self) -> float:
        """The mean over all rounds but the first, in which the devices' speed is hardly known."""
        later = self.rounds[1:]
        return (later[-1][2] - self.rounds[0][2]) / len(later) if later else self.rounds[0][2]


def run(directory: Path, strategy: str, seed: int, steps: str, scale: float, limit: float) -> Side:
    """Run a fleet for `limit` seconds from the opening of its first round."""
    directory.mkdir(parents=True)
    side = Side(strategy, seed, steps)
    program = [sys.executable, "-m", "splitee"]
    server_flags = {"--strategy": strategy, "--seed": seed, "--steps": steps, "--state": directory / "server"}
    with mosquitto(directory) as broker, closing(Link(broker.address, "timed-steps")) as link:
        settings = {"SPLITEE_BROKER": str(broker.address), "SPLITEE_FLEET": FLEET, "SPLITEE_THREADS": "1"}
        with Processes(directory, without_settings() | settings) as processes:
            link.subscribe(TOPICS.round, TOPICS.metrics)
            link.open(CONNECT)
            processes.start("server", [*program, "server", "--no-release", *_flags(SETTINGS | server_flags)])
            for number, device in enumerate(DEVICES, start=1):
                flags = {
                    "--id": device,
                    "--data": "builtin:fashion-mnist",
                    "--shard": f"{number}/{len(DEVICES)}",
                    "--network": NETWORK,
                    "--cut": CUT,
                    "--state": directory / device,
                }
                processes.start(device, [*program, "device", *_flags(flags)])
            side.rounds += _rounds(link, processes, scale, limit)
    return side


def _flags(settings: dict[str, Any]) -> list[str]:
    return [str(part) for flag in settings.items() for part in flag]


def _rounds(
    link: Link, processes: Processes, scale: float, limit: float
) -> Iterator[tuple[float, float, int]]:
    """Evaluated rounds, as in Side. Raises ClickException if no round is evaluated in time."""
    started, begun = time.monotonic(), None
    evaluated = 0
    while begun is None or time.monotonic() - begun < limit or not evaluated:
        processes.check()
        if time.monotonic() - started > STARTING + limit:
            raise click.ClickException("no round was evaluated in time: see the logs with --out")
        event = link.receive(TICK)
        if not isinstance(event, Message):
            continue
        if event.topic == TOPICS.round and begun is None:
            if RoundOpen.decode(event.payload).phase == "train":
                begun = time.monotonic()
                for device, share in DEVICES.items():
                    processes.hold(device, share * scale)
        elif event.topic == TOPICS.metrics and begun is not None:
            metrics = Metrics.decode(event.payload)
            assert metrics.fleet.trunk_accuracy is not None
            evaluated += 1
            yield time.monotonic() - begun, metrics.fleet.trunk_accuracy, metrics.batches_trained


def compare(timed: Side, equal: Side, target: float) -> dict[str, Any]:
    """The benchmark's figures; `times_sooner` is None if a side did not reach the target."""
    sooner, later = timed.reached(target), equal.reached(target)
    return {
        "benchmark": "timed_steps",
        "strategy": timed.strategy,
        "seed": timed.seed,
        "times_sooner": round(later / sooner, 2) if sooner and later else None,
        "times_the_batches": round(timed.rounds[-1][2] / equal.rounds[-1][2], 2),
        "accuracies": [round(side.rounds[-1][1], 4) for side in (timed, equal)],
    }


def equal_steps(timed: Side) -> int:
    """Steps per device with which the fleet trains as many batches per round as in `timed`."""
    return max(1, round(timed.batches_a_round / len(DEVICES)))


@click.command()
@click.option("--strategies", default="sequential,averaging", show_default=True)
@click.option(
    "--seconds", type=click.IntRange(1), default=10, show_default=True, help="Seconds of a timed round."
)
@click.option("--limit", type=click.FloatRange(1), default=120.0, show_default=True, help="Seconds per side.")
@click.option("--target", type=click.FloatRange(0, 1), default=0.7, show_default=True)
@click.option("--scale", type=click.FloatRange(0, 1, min_open=True), default=1.0, help="Of the shares.")
@click.option("--seeds", default="1", show_default=True)
@out_option
def main(
    strategies: str, seconds: int, limit: float, target: float, scale: float, seeds: str, out: Path | None
) -> None:
    """Compare rounds of equal time with rounds of equal steps, on three unequal devices."""
    require_shares()
    with signals_unwind(), working_directory(out) as directory:
        for seed in map(int, seeds.split(",")):
            for strategy in strategies.split(","):
                folder = directory / f"{strategy}-{seed}"
                timed = run(folder / "timed", strategy, seed, f"time:{seconds}", scale, limit)
                click.echo(json.dumps(timed.record(target)))
                equal = run(folder / "equal", strategy, seed, str(equal_steps(timed)), scale, limit)
                click.echo(json.dumps(equal.record(target)))
                click.echo(json.dumps(compare(timed, equal, target)))


if __name__ == "__main__":
    main()
