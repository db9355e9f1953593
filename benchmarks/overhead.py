"""What does being a fleet cost? CPU seconds of a fleet, over those of the same batches in one process.

    python -m benchmarks.overhead [--repetitions 5] [--codec fp16]

A real fleet of resnet18 at 32 pixels on a real Mosquitto, beside the simulation, which trains the same
batches with the same trainers and codec in one process, and ends with the same bits. Counted are user and
system time of all processes, the broker among them, over the rounds from the second to the last but one, from
opening to opening, so training, saving, committing and evaluating, but neither imports nor a first batch. One
thread a process, and all on one core: on two, the processes of a fleet would take caches and execution units
from each other, which one process alone is spared. Fleet and process take turns, and the median of the ratios
counts: a CPU second is worth more or less while others work on the machine.
Prints one JSON line, and exits with 1 when the ratio is not what it must be.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import Any

import click
import psutil
import torch

from benchmarks.chaos import CUTS, LONGEST, Settings, working_directory
from benchmarks.faulty_fleet import FaultyFleet
from splitee.link import Link, Message
from splitee.messages import RoundOpen, RunSpec
from splitee.topics import Topics
from splitee_device.data import Shard, open_data
from splitee_lab.simulation import SimulatedDevice, Simulation

MOST = 1.15  # CPU seconds of the fleet over those of one process
TOPICS = Topics("chaos")

Seconds = dict[str, float]  # of CPU, by process


@dataclass(frozen=True)
class Usual(Settings):
    """Batches of the default size, and a codec."""

    codec: str

    def server(self, strategy: str) -> list[str]:
        return [*super().server(strategy), "--batch-size", "32", "--codec", self.codec]


@dataclass(frozen=True)
class Run:
    """One run, as a fleet or in one process."""

    seconds: Seconds
    weights_sha256: str

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def in_fleet(directory: Path, strategy: str, settings: Settings) -> tuple[Run, RunSpec]:
    """A fleet's run, and its specification."""
    with (
        FaultyFleet(directory, settings.server(strategy), settings.devices()) as fleet,
        closing(Link(fleet.broker.address, "observer")) as link,
    ):
        link.subscribe(TOPICS.run, TOPICS.round)
        link.open(10)
        at_opening: dict[int, Seconds] = {}
        spec = None
        deadline = time.monotonic() + LONGEST
        while not fleet.finished:
            if time.monotonic() > deadline:
                raise click.ClickException(f"not finished after {LONGEST:.0f} s")
            event = link.receive(0.5)
            if not isinstance(event, Message):
                continue
            if event.topic == TOPICS.run:
                spec = RunSpec.decode(event.payload)
            else:
                opened = RoundOpen.decode(event.payload)
                if opened.phase == "train":
                    at_opening[opened.round] = _cpu_seconds(fleet)
        if any(part.unexpected for part in fleet.parts.values()) or spec is None:
            raise click.ClickException("the fleet did not run undisturbed")
        report = json.loads((directory / "server" / "report.json").read_text())
    first, last = at_opening[2], at_opening[settings.rounds]
    return Run({name: last[name] - first[name] for name in first}, report["weights_sha256"]), spec


def in_one_process(spec: RunSpec, samples: int) -> Run:
    """The same run in this process."""
    simulation = Simulation(
        spec,
        {
            device: SimulatedDevice(
                cut,
                open_data(
                    "builtin:fashion-mnist",
                    input_shape=spec.input_shape,
                    shard=Shard(index, len(CUTS)),
                    seed=spec.seed,
                    limit=samples,
                ),
            )
            for index, (device, cut) in enumerate(CUTS.items(), start=1)
        },
    )
    after = {done.round: time.process_time() for done in simulation.rounds()}
    return Run({"one process": after[spec.rounds - 1] - after[1]}, simulation.digest())


def _cpu_seconds(fleet: FaultyFleet) -> Seconds:
    """User and system time of every process so far."""
    pids = {name: part.process.pid for name, part in fleet.parts.items() if part.process is not None}
    assert fleet.broker.broker is not None
    assert fleet.broker.broker.pid is not None
    times = {
        name: psutil.Process(pid).cpu_times()
        for name, pid in {**pids, "broker": fleet.broker.broker.pid}.items()
    }
    return {name: used.user + used.system for name, used in times.items()}


def compare(fleets: list[Run], singles: list[Run], settings: Usual, strategy: str) -> dict[str, Any]:
    """The benchmark's figures."""
    ratios = [fleet.total / single.total for fleet, single in zip(fleets, singles, strict=True)]
    typical = ratios.index(median_low(ratios))
    used = {**fleets[typical].seconds, **singles[typical].seconds}
    result: dict[str, Any] = {
        "benchmark": "overhead",
        "strategy": strategy,
        "codec": settings.codec,
        "rounds": settings.rounds - 2,
        "batches_a_round": len(CUTS) * (settings.samples // 32),
        "ratio": round(ratios[typical], 3),
        "bound": MOST,
        "ratios": [round(ratio, 3) for ratio in ratios],
        "cpu_seconds": {name: round(seconds, 2) for name, seconds in used.items()},
        "all_fleets": [round(run.total, 2) for run in fleets],
        "all_single": [round(run.total, 2) for run in singles],
        "same_weights": len({run.weights_sha256 for run in (*fleets, *singles)}) == 1,
    }
    result["passed"] = ratios[typical] <= MOST and result["same_weights"]
    return result


@click.command()
@click.option("--strategy", type=click.Choice(["sequential", "averaging"]), default="sequential")
@click.option("--codec", default="fp16", show_default=True)
@click.option("--repetitions", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--rounds", type=click.IntRange(min=3), default=4, show_default=True)
@click.option("--samples", default=1536, show_default=True, help="Training pictures a device.")
@click.option("--core", type=int, help="That everything runs on.  [default: the last]")
@click.option("--out", type=click.Path(path_type=Path), help="Keep logs and states here.")
def main(
    strategy: str,
    codec: str,
    repetitions: int,
    rounds: int,
    samples: int,
    core: int | None,
    out: Path | None,
) -> None:
    """Measure what a fleet costs beside the training itself."""
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0)) if core is None else core})
    settings = Usual(rounds, samples, codec)
    fleets: list[Run] = []
    singles: list[Run] = []
    with working_directory(out) as directory:
        for repetition in range(1, repetitions + 1):
            fleet, spec = in_fleet(directory / str(repetition), strategy, settings)
            fleets.append(fleet)
            single = in_one_process(spec, samples)
            singles.append(single)
            click.echo(f"{repetition}: fleet {fleet.total:.2f} s, one process {single.total:.2f} s", err=True)
    result = compare(fleets, singles, settings, strategy)
    click.echo(json.dumps(result))
    sys.exit(not result["passed"])


if __name__ == "__main__":
    main()
