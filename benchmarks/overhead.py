# SPDX-License-Identifier: Apache-2.0
"""What does distribution cost? CPU seconds of a fleet, divided by those of the same training in one process.

    python -m benchmarks.overhead [--repetitions 3] [--codec fp16]

A real fleet trains resnet18 at 32 pixels on a real Mosquitto. The simulation trains the same batches with the
same trainers and codec in one process, and ends with the same weights, bit by bit. The benchmark adds up user
and system time of all processes, including the broker, from the opening of the second round to that of the
last. This covers training, saving, committing and evaluating, but neither imports nor the first batches.

Other load on the machine changes how much a CPU second computes, here by up to a third. Therefore both sides
run at once, with one thread per process and all on one core, in turns of half a second in which the other
side is stopped. Other load then disturbs both equally. The median of the repetitions counts.

The processes of a real fleet do not share one core and its caches. Here each keeps the core for 100 ms at a
time (`benchmarks.time_slices`).
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import Any

import click
import psutil

from benchmarks.real_fleet import CUTS, LONGEST, TOPICS, Fleet, Settings, out_option, working_directory
from benchmarks.simulated_devices import simulated_devices
from benchmarks.time_slices import take_long_slices
from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.protocol.rounds import RoundOpen
from splitee.protocol.run_spec import RunSpec
from splitee.training.process import prepare_to_train
from splitee_lab.methods.simulation import Simulation

MOST = 1.06  # CPU seconds of the fleet over those of one process
TURN = 0.5  # seconds

Seconds = dict[str, float]  # of CPU, by process


@dataclass(frozen=True)
class DefaultBatches(Settings):
    """Batches of 32 images, the default, and a codec."""

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


class Turns:
    """Runs two sides in turns until the context is left: one is stopped while the other runs."""

    def __init__(self, *sides: list[int]) -> None:
        """`sides`: process ids of each side."""
        self._sides = sides
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._alternate, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _alternate(self) -> None:
        for turn in itertools.count():
            running, others = self._sides[turn % 2], self._sides[(turn + 1) % 2]
            _send(signal.SIGSTOP, others)
            _send(signal.SIGCONT, running)
            if self._over.wait(TURN):
                break
        _send(signal.SIGCONT, itertools.chain(*self._sides))


def _send(number: signal.Signals, pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def measure(directory: Path, strategy: str, settings: Settings) -> tuple[Run, Run]:
    """A run as a fleet, and the same run in one process."""
    with (
        Fleet(directory, settings.server(strategy), settings.devices()) as fleet,
        closing(Link(fleet.broker.address, "observer")) as link,
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool,
    ):
        link.subscribe(TOPICS.run, TOPICS.round)
        link.open(10)
        spec = _await_run(link)
        alone = pool.submit(in_one_process, spec, settings.samples)
        with Turns(list(fleet.pids.values()), list(_children())):
            seconds = _watch(fleet, link, settings.rounds)
        single = alone.result()
        report = fleet.report()
        if report["unexpected_exits"]:
            raise click.ClickException("a process of the fleet ended unexpectedly")
    return Run(seconds, report["weights_sha256"]), single


def _children() -> Iterator[int]:
    return (child.pid for child in multiprocessing.active_children() if child.pid is not None)


def _await_run(link: Link) -> RunSpec:
    """The run, once all settings that depend on the fleet are decided (RunSpec.awaits_fleet)."""
    while True:
        event = link.receive(LONGEST)
        if event is None:
            raise click.ClickException("no server has published a run")
        if isinstance(event, Message) and event.topic == TOPICS.run:
            spec = RunSpec.decode(event.payload)
            if not spec.awaits_fleet:
                return spec


def _watch(fleet: Fleet, link: Link, rounds: int) -> Seconds:
    """Wait for the fleet to finish; CPU seconds from the opening of round 2 to that of the last round."""
    at_opening: dict[int, Seconds] = {}

    def note_opening() -> None:
        event = link.receive(0.2)
        if isinstance(event, Message) and event.topic == TOPICS.round:
            opened = RoundOpen.decode(event.payload)
            if opened.phase == "train":
                at_opening[opened.round] = _cpu_seconds(fleet)

    fleet.finish(note_opening)
    first, last = at_opening[2], at_opening[rounds]
    return {name: last[name] - first[name] for name in first}


def in_one_process(spec: RunSpec, samples: int) -> Run:
    """The run of `spec` in this process."""
    prepare_to_train(1)
    devices = simulated_devices(CUTS, spec.input_shape, spec.seed, limit=samples)
    simulation = Simulation(spec, devices)
    after = {done.round: time.process_time() for done in simulation.rounds()}
    return Run({"one process": after[spec.rounds - 1] - after[1]}, simulation.digest())


def _cpu_seconds(fleet: Fleet) -> Seconds:
    """User and system seconds of each process so far."""
    times = {name: psutil.Process(pid).cpu_times() for name, pid in fleet.pids.items()}
    return {name: spent.user + spent.system for name, spent in times.items()}


def compare(fleets: list[Run], singles: list[Run], settings: DefaultBatches, strategy: str) -> dict[str, Any]:
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
@click.option("--repetitions", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--rounds", type=click.IntRange(min=3), default=4, show_default=True)
@click.option("--samples", default=1536, show_default=True, help="Training images per device.")
@click.option("--core", type=int, help="Core for all processes.  [default: the last]")
@out_option
def main(
    strategy: str,
    codec: str,
    repetitions: int,
    rounds: int,
    samples: int,
    core: int | None,
    out: Path | None,
) -> None:
    """Measure the CPU time of a fleet, relative to training in one process."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else processes of the fleet would remain
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0)) if core is None else core})
    take_long_slices()
    settings = DefaultBatches(rounds, samples, codec)
    fleets: list[Run] = []
    singles: list[Run] = []
    with working_directory(out) as directory:
        for repetition in range(1, repetitions + 1):
            fleet, single = measure(directory / str(repetition), strategy, settings)
            fleets.append(fleet)
            singles.append(single)
            click.echo(f"{repetition}: fleet {fleet.total:.2f} s, one process {single.total:.2f} s", err=True)
    result = compare(fleets, singles, settings, strategy)
    click.echo(json.dumps(result))
    sys.exit(not result["passed"])


if __name__ == "__main__":
    main()
