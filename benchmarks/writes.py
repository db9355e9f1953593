# SPDX-License-Identifier: Apache-2.0
"""How much does a fleet write to SD cards? Bytes and fsyncs per round, compared with the size of its state.

    python -m benchmarks.writes [--rounds 5] [--averaging layerwise|none] [--idle 0]

A real fleet trains resnet18 at 32 pixels on a real Mosquitto that saves like the shipped configuration. The
kernel counts the bytes that each process dirties on disks (`write_bytes`), from the opening of the second
round to that of the last; strace counts fsyncs, if it is installed. The state is the newest round's file of a
process, or the broker's database.
With --idle, another fleet then waits for --idle seconds for a missing device. This measures the broker's
saves while processes only send heartbeats.
Prints a table, then one JSON line; exits with 1 if a device or the server writes much more than its state.
"""

from __future__ import annotations

import getpass
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import click
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.real_fleet import CUTS, TOPICS, Fleet, Settings, out_option, working_directory
from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.protocol.rounds import RoundOpen
from splitee_lab.local.brokers import MOSQUITTO_SETTINGS

MOST = 1.1  # times its state, that a device or the server may write per round
BESIDE = 256 << 10  # bytes that it may write in addition: figures, mistakes, changed statistics
SAVING = ("persistence", "persistence_location", "autosave_interval", "autosave_on_changes")
FIRST = 2  # first counted round: before it, files are written that are written only once


@dataclass(frozen=True)
class Averaged(Settings):
    """Settings with `--client-averaging`."""

    averaging: str

    def server(self, strategy: str) -> list[str]:
        return [*super().server(strategy), "--client-averaging", self.averaging]


@dataclass(frozen=True)
class Writes:
    """Writes of a process, in total or between two times."""

    bytes: int
    fsyncs: int

    def __sub__(self, earlier: Writes) -> Writes:
        return Writes(self.bytes - earlier.bytes, self.fsyncs - earlier.fsyncs)


class Counter:
    """Counts the writes of the processes of a fleet."""

    def __init__(self, fleet: Fleet, traces: Path) -> None:
        self._fleet = fleet
        self._traces = traces
        self.has_strace = shutil.which("strace") is not None

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """Record fsyncs with strace, if it is installed, until the context is left."""
        with ExitStack() as stack:
            for name, pid in self._fleet.pids.items() if self.has_strace else ():
                command = ["strace", "-f", "-q", "-e", "trace=fsync,fdatasync", "-p", str(pid)]
                output = stack.enter_context((self._traces / f"{name}.strace").open("wb"))
                tracer = subprocess.Popen(command, stdout=output, stderr=output)
                stack.callback(tracer.wait)
                stack.callback(tracer.send_signal, signal.SIGINT)
            yield

    def now(self) -> dict[str, Writes]:
        """Writes so far, by process."""
        return {name: Writes(_written(pid), self._fsyncs(name)) for name, pid in self._fleet.pids.items()}

    def _fsyncs(self, name: str) -> int:
        trace = self._traces / f"{name}.strace"
        if not trace.exists():
            return 0
        lines = trace.read_text(errors="replace").splitlines()
        return sum("sync(" in line for line in lines)  # a resumed call has no bracket


def _written(pid: int) -> int:
    return int(psutil.Process(pid).io_counters().write_bytes)


def broker_settings(directory: Path, autosave: int | None) -> str:
    """Settings of the fleet's Mosquitto, with the settings for saving of the shipped configuration."""
    directory.mkdir(parents=True)
    text = files("splitee_broker").joinpath("mosquitto.conf").read_text()
    lines = (line.split(maxsplit=1) for line in text.splitlines())
    shipped = {words[0]: words[1] for words in lines if words and words[0] in SAVING}
    shipped["persistence_location"] = f"{directory}/"
    if autosave is not None:
        shipped["autosave_interval"] = str(autosave)
    rest = MOSQUITTO_SETTINGS.replace("persistence false\n", "")
    rest += f"user {getpass.getuser()}\n"  # else root switches to an account without access to the folder
    return rest + "".join(f"{name} {value}\n" for name, value in shipped.items())


def state_sizes(fleet: Fleet, database: Path) -> dict[str, int]:
    """Bytes of the newest round's file of each process, and of the broker's database."""
    sizes = {"broker": database.stat().st_size if database.exists() else 0}
    for name in fleet.parts:
        newest = max((fleet.directory / name).glob("round-*.state"), default=None)
        sizes[name] = newest.stat().st_size if newest is not None else 0
    return sizes


def rounds_of(fleet: Fleet, link: Link, counter: Counter, rounds: int) -> dict[str, Writes]:
    """Writes from the opening of round FIRST to that of the last round, by process."""
    seen: dict[int, dict[str, Writes]] = {}

    def note_opening() -> None:
        event = link.receive(0.2)
        if isinstance(event, Message) and event.topic == TOPICS.round:
            opened = RoundOpen.decode(event.payload)
            if opened.phase == "train" and opened.round in (FIRST, rounds):
                seen.setdefault(opened.round, counter.now())

    with counter.tracing():
        fleet.until(lambda: rounds in seen, note_opening)
    return {name: seen[rounds][name] - before for name, before in seen[FIRST].items()}


def measure(directory: Path, settings: Averaged, autosave: int | None) -> dict[str, Any]:
    """A fleet's writes per round, by process."""
    saving = broker_settings(directory / "broker", autosave)
    with (
        Fleet(
            directory / "fleet", settings.server("sequential"), settings.devices(), broker_settings=saving
        ) as fleet,
        closing(Link(fleet.broker.address, "observer")) as link,
    ):
        link.subscribe(TOPICS.round)
        link.open(10)
        counter = Counter(fleet, directory)
        started = time.monotonic()
        written = rounds_of(fleet, link, counter, settings.rounds)
        seconds = time.monotonic() - started
        sizes = state_sizes(fleet, directory / "broker" / "mosquitto.db")
    rounds = settings.rounds - FIRST
    rows = {}
    for name, found in written.items():
        bytes_a_round, state = found.bytes / rounds, sizes[name]
        rows[name] = {
            "bytes": round(bytes_a_round),
            "fsyncs": round(found.fsyncs / rounds, 1) if counter.has_strace else None,
            "state": state,
            "times": round(bytes_a_round / state, 3) if state else None,
            "most": round(MOST * state + BESIDE) if name != "broker" else None,
        }
    return {"processes": rows, "seconds_in_all": round(seconds, 1)}


def idle(directory: Path, settings: Settings, seconds: float, autosave: int | None) -> dict[str, Any]:
    """Writes of a fleet while its server waits for a missing device."""
    database = directory / "broker" / "mosquitto.db"
    devices = settings.devices()
    devices.popitem()
    saving = broker_settings(directory / "broker", autosave)
    with (
        Fleet(directory / "fleet", settings.server("sequential"), devices, broker_settings=saving) as fleet,
        closing(Link(fleet.broker.address, "observer")) as link,
    ):
        joined: set[str] = set()
        link.subscribe(TOPICS.all_devices("inbox/plan"))
        link.open(10)
        fleet.until(lambda: len(joined) == len(devices), lambda: _note_topic(link, joined))
        before = {name: _written(pid) for name, pid in fleet.pids.items()}
        saves: set[int] = set()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if database.exists():
                saves.add(database.stat().st_mtime_ns)
            time.sleep(0.5)
        written = {name: _written(pid) - before[name] for name, pid in fleet.pids.items()}
        size = database.stat().st_size if database.exists() else 0
    return {"seconds": seconds, "database_saves": len(saves), "database": size, "written": written}


def _note_topic(link: Link, topics: set[str]) -> None:
    event = link.receive(0.2)
    if isinstance(event, Message):
        topics.add(event.topic)


def show(processes: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the writes as a table."""
    table = Table(box=None, header_style="bold")
    for column in ("process", "kB per round", "fsyncs per round", "state, kB", "times the state"):
        table.add_column(column, justify="left" if column == "process" else "right")
    for name, row in processes.items():
        fsyncs = "" if row["fsyncs"] is None else f"{row['fsyncs']:.1f}"
        times = "" if row["times"] is None else f"{row['times']:.2f}"
        table.add_row(name, f"{row['bytes'] / 1e3:,.0f}", fsyncs, f"{row['state'] / 1e3:,.0f}", times)
    Console(stderr=True).print(table)


@click.command()
@click.option("--rounds", type=click.IntRange(min=FIRST + 1), default=5, show_default=True)
@click.option("--averaging", type=click.Choice(["layerwise", "none"]), default="layerwise", show_default=True)
@click.option("--samples", type=click.IntRange(min=3), default=96, show_default=True)
@click.option("--autosave", type=int, help="The broker's autosave_interval, if not the shipped one.")
@click.option("--idle", "idle_for", default=0.0, show_default=True, help="Seconds to measure an idle fleet.")
@out_option
def main(
    rounds: int, averaging: str, samples: int, autosave: int | None, idle_for: float, out: Path | None
) -> None:
    """Count the bytes and fsyncs that each process of a fleet writes per round."""
    settings = Averaged(rounds, samples, averaging)
    result: dict[str, Any] = {"benchmark": "writes", "averaging": averaging, "devices": len(CUTS)}
    with working_directory(out) as directory:
        result |= measure(directory / "busy", settings, autosave)
        if idle_for:
            result["idle"] = idle(directory / "idle", settings, idle_for, autosave)
    limited = [row for row in result["processes"].values() if row["most"] is not None]
    if not any(row["bytes"] for row in limited):
        raise click.ClickException(
            "the kernel counted no bytes, as for a folder in memory: name one on a disk with --out"
        )
    result["passed"] = all(row["bytes"] <= row["most"] for row in limited)
    show(result["processes"])
    click.echo(json.dumps(result))
    sys.exit(not result["passed"])


if __name__ == "__main__":
    main()
