# SPDX-License-Identifier: Apache-2.0
"""The costs of a server for each of many devices: synthetic devices with a real broker and a real server.

    python -m benchmarks.fleet --devices 1000 [--strategy averaging] [--kill 100] [--slow-trunk]
    python -m benchmarks.fleet --curve 10,100,1000

All devices run in this process, on one epoll, with the product's own agent, session, outbox, messages, codecs
and link. Only their training and their disks are left out: features are computed once, states are kept in
memory. The network is tiny, so that the fleet's overhead is visible beside the trunk's training. Broker and
`splitee server` are separate processes. The server records its CPU time by function
(`benchmarks.synthetic.measured_server`).

Prints a table and a line of JSON. Exits with 1 if an event was dropped or nothing moved for `--patience`
seconds. With `--curve` it also exits with 1 if from 100 devices on the CPU time per batch grows by more than
15 % or is above 2.3 times the step of the bare torch loop in the same minutes, or if a device takes more than
200 KB of memory beyond the models.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from benchmarks.real_fleet import out_option, working_directory
from benchmarks.synthetic.device import Device
from benchmarks.synthetic.devices import Devices
from benchmarks.synthetic.figures import figures, growth, read_notes
from benchmarks.synthetic.training import images_of
from splitee.protocol.topics import Topics
from splitee_device.data.device_images import DeviceImages
from splitee_lab.local.brokers import RestartableBroker

TOPICS = Topics("many")
CUTS = (1, 2, 3)
# The server's CPU time per batch, divided by that of the bare torch step. On an idle core of a 2.8 GHz Xeon
# the step takes 0.65 ms, so the bound is 1.5 ms there. On a shared core both may take twice as long.
MOST_TIMES_BARE = 2.3
MOST_GROWTH = 1.15  # ratio of the CPU times per batch of two runs, the smaller of at least GROWS_FROM devices
GROWS_FROM = 100
MOST_KB = 200.0  # of the server's memory for a further device, without the models
START_LIMIT = 120.0  # seconds in which a server must open its run
END_LIMIT = 60.0  # seconds in which it must end, after its devices have ended


@dataclass(frozen=True)
class Work:
    """The settings of a run, except for the number of devices."""

    strategy: str
    averaging: str
    rounds: int
    steps: int
    batch: int
    held_out: int
    kill: int
    slow_trunk: bool
    patience: float

    def server(self, devices: int, directory: Path) -> list[str]:
        """Flags of `splitee server`, without broker and fleet."""
        flags = {
            "--network": "benchmarks.tiny:network",
            "--input": "3x32x32",
            "--devices": devices,
            "--rounds": self.rounds,
            "--strategy": self.strategy,
            "--client-averaging": self.averaging,
            "--batch-size": self.batch,
            "--threads": 1,
            "--state": directory / "server",
        }
        return ["--no-release", *(str(word) for flag in flags.items() for word in flag)]


def measure(directory: Path, devices: int, work: Work) -> dict[str, Any]:
    """The figures of one run; if it made no progress it is `wedged`, `waits_for` has its last log line."""
    directory.mkdir(parents=True)
    broker = RestartableBroker("mosquitto", directory)
    pid = broker.start().pid
    notes = directory / "notes.jsonl"
    slow = ["--slow-trunk"] if work.slow_trunk else []
    link = ("--broker", str(broker.address), "--fleet", TOPICS.fleet)
    command = ["-m", "benchmarks.synthetic.measured_server", str(notes), str(pid), *slow, "server", *link]
    with (directory / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, *command, *work.server(devices, directory)], stdout=log, stderr=log
        )
    try:
        _await_run(server, notes, directory)
        synthetic = _devices(broker, devices, work)
        fleet = Devices(synthetic)
        started = time.monotonic()
        fleet.start()
        joined = time.monotonic()
        fleet.run(_Progress(server, notes, synthetic, work.patience))
        wedged = not fleet.have_finished
        if not wedged:
            server.wait(END_LIMIT)
    finally:
        server.kill()
        server.wait()
        broker.stop()
    result = {"devices": devices, "strategy": work.strategy, "wedged": wedged}
    if wedged:
        return result | {"waits_for": _last_line(directory / "server.log")}
    report = json.loads((directory / "server" / "report.json").read_text())
    return result | {
        "joined_seconds": round(joined - started, 1),
        **figures(read_notes(notes), devices, directory / "server"),
        "killed": sum(len(device.deaths) for device in synthetic),
        "connections_lost": fleet.lost,
        "rejected": report["rejected"],
        "weights_sha256": report["weights_sha256"],
    }


def _devices(broker: RestartableBroker, count: int, work: Work) -> list[Device]:
    images = DeviceImages(lambda _division: images_of(work.steps * work.batch, work.held_out, classes=10))
    names = [f"pi-{number:05d}" for number in range(1, count + 1)]
    doomed = {
        number: frozenset(random.Random(number).sample(names, min(work.kill, count)))
        for number in range(1, work.rounds + 1)
    }
    return [
        Device(
            name,
            CUTS[index % len(CUTS)],
            broker.address,
            TOPICS,
            images,
            lambda device, number: device in doomed[number],
        )
        for index, name in enumerate(names)
    ]


class _Progress:
    """False: the server has failed, or opened no phase and acknowledged nothing for `patience` seconds."""

    def __init__(
        self, server: subprocess.Popen[bytes], notes: Path, devices: list[Device], patience: float
    ) -> None:
        self._server = server
        self._notes = notes
        self._devices = devices
        self._patience = patience
        self._seen: object = None
        self._due = self._changed_at = time.monotonic()

    def __call__(self) -> bool:
        now = time.monotonic()
        if now >= self._due:
            self._due = now + min(5.0, self._patience / 4)
            seen = self._notes.stat().st_size, [device.acknowledged for device in self._devices]
            if seen != self._seen:
                self._seen, self._changed_at = seen, now
        return self._server.poll() in (None, 0) and now - self._changed_at < self._patience


def _await_run(server: subprocess.Popen[bytes], notes: Path, directory: Path) -> None:
    deadline = time.monotonic() + START_LIMIT
    while not read_notes(notes):
        if server.poll() is not None or time.monotonic() > deadline:
            raise click.ClickException(f"the server opened no run: {_last_line(directory / 'server.log')}")
        time.sleep(0.1)


def _last_line(log: Path) -> str:
    return (log.read_text(errors="replace").strip().splitlines() or ["its log is empty"])[-1]


def failures(results: list[dict[str, Any]]) -> list[str]:
    """Describe the bounds that are missed; add `growth` to the later runs of a curve."""
    missed = []
    for result in results:
        name = f"{result['devices']} devices"
        if result["wedged"]:
            missed.append(f"{name}: nothing moves any more: {result['waits_for']}")
        elif result["dropped_events"]:
            missed.append(f"{name}: {result['dropped_events']} events were dropped")
    if missed or len(results) == 1:
        return missed
    for before, after in pairwise(results):
        name, grown = f"{before['devices']} to {after['devices']} devices", growth(before, after)
        after["growth"] = grown
        if before["devices"] < GROWS_FROM:
            continue
        if grown["server_ms"] > MOST_GROWTH:
            missed.append(f"{name}: CPU a batch grows {grown['server_ms']} times, at most {MOST_GROWTH}")
        if after["times_bare"] > MOST_TIMES_BARE:
            missed.append(
                f"{name}: {after['server_ms']} ms of CPU a batch, {after['times_bare']} times the bare step, "
                f"at most {MOST_TIMES_BARE}"
            )
        if grown["kb_a_further_device"] > MOST_KB:
            missed.append(f"{name}: {grown['kb_a_further_device']} KB a further device, at most {MOST_KB}")
    return missed


def table(results: list[dict[str, Any]]) -> str:
    """A row for each figure, a column for each run; those in `ms` are milliseconds of CPU per batch."""
    rows: dict[str, list[str]] = {}
    for result in results:
        for name, value in result.items():
            parts = value if isinstance(value, dict) else {"": value}
            for part, figure in parts.items():
                rows.setdefault(f"{name} {part}".strip(), []).append(str(figure)[:12])
    return "\n".join(f"{name:38}" + "".join(f"{cell:>13}" for cell in cells) for name, cells in rows.items())


class Counts(click.ParamType[list[int]]):
    """Numbers of devices, separated by commas, in ascending order."""

    name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        try:
            counts = sorted({int(word) for word in value.split(",")})
        except ValueError:
            counts = []
        if not counts or counts[0] < 1:
            self.fail(f"expected numbers of devices such as 10,100,1000; got {value!r}", param, ctx)
        return counts


@click.command()
@click.option("--devices", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--curve", type=Counts(), help="Run with each of these numbers of devices; check the growth.")
@click.option("--strategy", type=click.Choice(["sequential", "averaging"]), default="sequential")
@click.option("--averaging", type=click.Choice(["none", "same-cut", "layerwise"]), default="none")
@click.option("--rounds", type=click.IntRange(min=3), default=4, show_default=True)
@click.option(
    "--steps", type=click.IntRange(min=2), default=12, show_default=True, help="Batches per device."
)
@click.option("--batch", type=click.IntRange(min=2), default=32, show_default=True)
@click.option(
    "--held-out",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Images; 64 are a batch.",
)
@click.option("--kill", type=click.IntRange(min=0), default=0, help="Devices that vanish in every round.")
@click.option("--slow-trunk", is_flag=True, help="The run's first batches take seconds.")
@click.option("--patience", type=click.FloatRange(min=1), default=90.0, show_default=True)
@out_option
def main(devices: int, curve: list[int] | None, out: Path | None, **work: Any) -> None:
    """Measure a server's CPU time and memory for each of many devices."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # inherited by the broker
    results = []
    with working_directory(out) as directory:
        for count in curve or [devices]:
            results.append(measure(directory / str(count), count, Work(**work)))
            click.echo(f"{count} devices: {results[-1].get('server_ms')} ms per batch", err=True)
    missed = failures(results)
    click.echo(table(results))
    click.echo(json.dumps({"benchmark": "fleet", "runs": results, "failures": missed, "passed": not missed}))
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
