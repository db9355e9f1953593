# SPDX-License-Identifier: Apache-2.0
"""Does a fleet survive the faults of a day in the field? Twenty devices, in one run of five minutes.

    python -m benchmarks.soak [--devices 20] [--rounds 240]

Real processes use a real Mosquitto with a database. During the run the broker is restarted three times, a
disk is full, a device is killed and dismissed, another comes back after rounds without it, a device's state
is cloned, and two clocks jump by a year. At the end all rounds must be committed, undisturbed devices must
have taken part in each of them, no process may have ended unexpectedly, memory and descriptors of undisturbed
processes must not have grown, the broker's database must be small, and no abandoned sessions may be left.
Prints a table (standard error) and a JSON line, and exits with 1 if a figure is out of its bounds.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.broker_store import LARGEST_STORE, abandoned_sessions
from benchmarks.faults import YEAR
from benchmarks.real_fleet import (
    FLEET,
    TICK,
    TOPICS,
    Fleet,
    FleetProcess,
    out_option,
    working_directory,
)
from splitee.errors import ExitCode
from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.protocol import routes
from splitee.protocol.fleet_view import FleetSnapshot, FleetView
from splitee.protocol.rounds import Participation

Steps = Generator[int, None, str]  # yields the committed rounds to wait for; returns the outcome

STEPS = 2  # batches per round and device
DEADLINE = 20.0  # seconds after which a round goes on without late devices
LONGEST_START = 50  # rounds, the most until a started process takes part
SMALL_DISK = 4 << 20  # bytes
SAMPLE_EVERY = 2.0  # seconds between two samples of memory and descriptors
GROWTH = 1.05  # of memory, the most; see Samples.growth


@dataclass
class Scenario:
    """A fault: its description, its time, its steps, and its outcome."""

    what: str
    at: int  # number of committed rounds after which it starts
    run: Callable[[], Steps]
    outcome: str = ""
    steps: Steps | None = None
    resumes_at: int = 0  # number of committed rounds after which it goes on
    over: bool = False


@dataclass
class Samples:
    """Resident bytes and open descriptors of one process, over time."""

    memory: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def growth(self) -> tuple[float, int]:
        """Growth of the medians, first third to last, after a sixth: memory a ratio, descriptors a number."""
        sixth = len(self.memory) // 6
        memory, descriptors = self.memory[sixth:], self.descriptors[sixth:]
        third = max(1, len(memory) // 3)
        median = statistics.median
        ratio = median(memory[-third:]) / median(memory[:third])
        return ratio, int(median(descriptors[-third:]) - median(descriptors[:third]))


class Day:
    """The fleet, its view, and the scenarios that run on it."""

    def __init__(self, fleet: Fleet, view: Link, directory: Path) -> None:
        self._fleet = fleet
        self._link = view
        self._directory = directory
        self._view = FleetView(FLEET)
        self._parts: dict[str, Participation] = {}  # the latest, by device
        view.subscribe(*self._view.filters, TOPICS.all_devices(routes.PARTICIPATION.leaf))
        self.ended: dict[str, int] = {}  # expected exit codes, by device
        self.samples: dict[str, Samples] = {}
        self._sampled = 0.0
        broker = [Scenario("broker started anew", at, self._broker) for at in (20, 100, 180)]
        self.scenarios = [
            *broker,
            Scenario("disk full (pi-02)", 35, self._full_disk),
            Scenario("card dies, dismissed (pi-03)", 50, self._dismissed),
            Scenario("away for rounds, comes back (pi-04)", 65, self._away),
            Scenario("card cloned (pi-05)", 125, self._cloned),
            Scenario("clock a year ahead (pi-06)", 145, self._clock),
            Scenario("clock a year behind (server)", 160, self._server_clock),
        ]
        self.touched = {"pi-02", "pi-03", "pi-04", "pi-05"}

    @property
    def snapshot(self) -> FleetSnapshot:
        return self._view.snapshot()

    def tick(self) -> None:
        """Read the fleet's messages, take samples, and run the next step of a scenario that is due."""
        while (event := self._link.receive(TICK if not self.snapshot.empty else 0.5)) is not None:
            if isinstance(event, Message):
                self._view.take(event, time.time())
                self._note_part(event)
        self._sample()
        committed = self._committed()
        for scenario in self.scenarios:
            if scenario.over or committed < max(scenario.at, scenario.resumes_at):
                continue
            scenario.steps = scenario.steps or scenario.run()
            try:
                scenario.resumes_at = next(scenario.steps)
            except StopIteration as done:
                scenario.outcome, scenario.over = str(done.value), True
            return  # other scenarios run after the view is updated

    def _sample(self) -> None:
        if time.monotonic() - self._sampled < SAMPLE_EVERY:
            return
        self._sampled = time.monotonic()
        for name, part in self._fleet.parts.items():
            if name in self.touched or part.process is None or part.process.poll() is not None:
                continue
            process = psutil.Process(part.process.pid)
            samples = self.samples.setdefault(name, Samples())
            samples.memory.append(process.memory_info().rss)
            samples.descriptors.append(process.num_fds())

    def _committed(self) -> int:
        return self.snapshot.committed

    def _broker(self) -> Steps:
        before = self._committed()
        self._fleet.broker.kill()
        self._fleet.broker.start()
        yield before + 2
        return "rounds went on"

    def _full_disk(self) -> Steps:
        name, disk = "pi-02", self._directory / "pi-02"
        with (disk / "filler").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        code = self._fleet.await_exit(name)
        (disk / "filler").unlink()
        self._fleet.start(name)
        yield from self._await_part(name)
        return f"ended with code {code}, came back"

    def _dismissed(self) -> Steps:
        name = "pi-03"
        self._fleet.kill(name)
        done = subprocess.run(
            [*SPLITEE, "dismiss", name, "--broker", str(self._fleet.broker.address), "--fleet", FLEET],
            capture_output=True,
            text=True,
            check=False,
        )
        yield self._committed() + 2
        listed = [device.id for device in self.snapshot.devices]
        assert done.returncode == 0, done.stderr
        assert name not in listed, "the dismissed device is still listed"
        self._fleet.start(name)
        code = self._fleet.await_exit(name)
        del self._fleet.parts[name]
        self.ended[name] = code
        return f"run goes on without it; started again it ends with code {code}"

    def _away(self) -> Steps:
        name = "pi-04"
        self._fleet.kill(name)
        yield self._committed() + 20
        assert not self.takes_part(name)
        self._fleet.start(name)
        yield from self._await_part(name)
        return "takes part again"

    def _cloned(self) -> Steps:
        name, copy = "pi-05", "pi-05-copy"
        shutil.copytree(self._directory / name, self._directory / copy)
        original = self._fleet.parts[name]
        states = {str(self._directory / name): str(self._directory / copy)}
        self._fleet.parts[copy] = FleetProcess([states.get(word, word) for word in original.command])
        self._fleet.start(copy)
        code = self._fleet.await_exit(name)
        del self._fleet.parts[name]
        self.ended[name] = code
        yield from self._await_part(name)
        return f"the older ended with code {code}, the newer takes part"

    def _await_part(self, name: str) -> Iterator[int]:
        """Wait until a started device takes part, for LONGEST_START rounds at most."""
        last = self._committed() + LONGEST_START
        while not self.takes_part(name):
            assert self._committed() < last, f"{name} has not taken part within {LONGEST_START} rounds"
            yield self._committed() + 1

    def _clock(self) -> Steps:
        yield from self._jump("pi-06", YEAR)
        assert self.takes_part("pi-06")
        return "takes part all the time"

    def _server_clock(self) -> Steps:
        yield from self._jump("server", -YEAR)
        return "rounds went on"

    def _jump(self, name: str, seconds: float) -> Iterator[int]:
        self._fleet.set_clock(name, seconds)
        yield self._committed() + 2
        self._fleet.set_clock(name, 0)
        yield self._committed() + 1

    def takes_part(self, device: str) -> bool:
        """Whether the device takes part in the current phase."""
        phase, participation = self.snapshot.phase, self._parts.get(device)
        if phase is None or participation is None or participation.part is None:
            return False
        return (participation.attempt, participation.round, participation.phase) == (
            phase.attempt,
            phase.round,
            phase.phase,
        )

    def _note_part(self, message: Message) -> None:
        device_topic = TOPICS.parse_device(message.topic)
        if message.payload and device_topic is not None and device_topic[1] == routes.PARTICIPATION.leaf:
            self._parts[device_topic[0]] = Participation.decode(message.payload)


SPLITEE = [sys.executable, "-m", "splitee"]


@contextmanager
def small_disk(path: Path) -> Iterator[None]:
    """Mount a file system of SMALL_DISK bytes at `path`."""
    if os.geteuid() != 0:
        raise click.ClickException("a full disk is a tmpfs that only root may mount: run this as root")
    path.mkdir(parents=True)
    options = ("-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(path))
    subprocess.run(["mount", *options], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def flags(devices: int, rounds: int) -> tuple[list[str], dict[str, list[str]]]:
    """Flags of the server, and of each device by its id."""
    network = ["--network", "benchmarks.tiny:network"]
    run = ["--input", "3x32x32", "--rounds", str(rounds), "--steps", str(STEPS), "--batch-size", "8"]
    policy = ["--devices", str(devices), "--missing", "skip", "--deadline-floor", str(DEADLINE)]
    data = ["--data", "builtin:fashion-mnist", "--limit", "32"]
    return [*network, *run, *policy, "--seed", "1"], {
        f"pi-{n:02}": [*network, *data, "--shard", f"{n}/{devices}", "--cut", str(1 + n % 3)]
        for n in range(1, devices + 1)
    }


def run(directory: Path, devices: int, rounds: int) -> dict[str, Any]:
    """Run the fleet with all scenarios; the benchmark's figures."""
    started = time.monotonic()
    server, device_flags = flags(devices, rounds)
    with (
        Fleet(directory, server, device_flags, isolated=(), keeps_store=True, own_clocks=True) as fleet,
        closing(Link(fleet.broker.address, "soak-view")) as view,
    ):
        view.open(10)
        day = Day(fleet, view, directory)

        def meanwhile() -> None:
            day.tick()
            fleet.database.measure()

        fleet.finish(meanwhile)
        report = fleet.report()
        sessions = abandoned_sessions(fleet.broker.address)
        fleet.database.saved(fleet.pids["broker"])
    untouched = {
        device["id"]: device["batches"] for device in report["devices"] if device["id"] not in day.touched
    }
    growth = {name: samples.growth() for name, samples in day.samples.items()}
    grown = sorted(growth, key=lambda name: -growth[name][0])
    result = {
        "benchmark": "soak",
        "devices": devices,
        "rounds": rounds,
        "stories": {scenario.what: scenario.outcome or "did not end" for scenario in day.scenarios},
        "batches_of_untouched": sorted(set(untouched.values())),
        "batches_wanted": rounds * STEPS,
        "exits": day.ended,
        "unexpected_exits": report["unexpected_exits"],
        "memory_growth": {name: round(growth[name][0], 3) for name in grown[:3]},
        "descriptor_growth": max(count for _, count in growth.values()),
        "broker_store_kb": round(fleet.database.largest / 1000),
        "abandoned_sessions": sessions,
        "seconds": round(time.monotonic() - started, 1),
    }
    result["passed"] = (
        all(scenario.over for scenario in day.scenarios)
        and result["batches_of_untouched"] == [rounds * STEPS]
        and result["exits"] == {"pi-03": ExitCode.DISMISSED, "pi-05": ExitCode.ID_IN_USE}
        and not result["unexpected_exits"]
        and growth[grown[0]][0] <= GROWTH
        and result["descriptor_growth"] <= 1
        and fleet.database.largest < LARGEST_STORE
        and not sessions
    )
    return result


def table(result: dict[str, Any]) -> Table:
    """The result as a table."""
    shown = Table("scenario", "outcome", box=None, header_style="bold")
    for what, outcome in result["stories"].items():
        shown.add_row(what, outcome)
    for name in ("batches_of_untouched", "unexpected_exits", "memory_growth"):
        shown.add_row(name.replace("_", " "), str(result[name]))
    for name in ("descriptor_growth", "broker_store_kb", "abandoned_sessions", "seconds"):
        shown.add_row(name.replace("_", " "), str(result[name]))
    return shown


@click.command()
@click.option("--devices", type=click.IntRange(7), default=20, show_default=True)
@click.option("--rounds", type=click.IntRange(200), default=240, show_default=True)
@out_option
def main(devices: int, rounds: int, out: Path | None) -> None:
    """Train a fleet for minutes under the faults of a day in the field."""
    console = Console(stderr=True)
    with (
        working_directory(out) as above,
        small_disk(above / "day" / "pi-02"),
        console.status(f"{devices} devices, {rounds} rounds"),
    ):
        result = run(above / "day", devices, rounds)
    console.print(table(result))
    click.echo(json.dumps(result))
    sys.exit(not result["passed"])


if __name__ == "__main__":
    main()
