"""Does a run that is killed anywhere end with the same bits? A fleet with faults beside one without.

    python -m benchmarks.chaos [--strategy sequential|averaging|both] [--faults 20] [--seed 1]

A real fleet on a real Mosquitto: at seeded random moments devices, server or broker are killed with SIGKILL
(also with the newest state file torn, as by a power cut), frozen, or a device's network is cut; all come back
a little later. Prints one JSON line a strategy, and exits with 1 when a figure is not what it must be.
"""

from __future__ import annotations

import itertools
import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from benchmarks.fleet import CUTS, TICK, Fleet, Settings, out_option, until, working_directory

Undo = Callable[[], object]


class Faults:
    """Injects faults, and undoes each some seconds later."""

    def __init__(self, fleet: Fleet, generator: random.Random) -> None:
        self._fleet = fleet
        self._random = generator
        self._pending: list[tuple[float, str, Undo]] = []
        self._untouchable: set[str] = set()  # what a fault has in its hands
        self.counts: Counter[str] = Counter()

    def inject(self) -> None:
        """One fault on something that is not under one already."""
        free = [name for name in (*CUTS, "server", "broker") if name not in self._untouchable]
        if not free:
            return
        name = self._random.choice(free)
        kinds = {"broker": ["kill"], "server": ["kill", "power", "freeze"]}
        kind = self._random.choice(kinds.get(name, ["kill", "power", "freeze", "network"]))
        undo = self._fault(kind, name)
        if undo is None:
            return
        what = name if name in ("broker", "server") else "device"
        self.counts[f"{kind} {what}"] += 1
        self._untouchable.add(name)
        self._pending.append((time.monotonic() + self._random.uniform(0.2, 4.0), name, undo))

    def undo_due(self) -> None:
        """Bring back what has been away long enough."""
        now = time.monotonic()
        due = [item for item in self._pending if item[0] <= now]
        self._pending = [item for item in self._pending if item not in due]
        for _, name, undo in due:
            undo()
            self._untouchable.discard(name)

    def _fault(self, kind: str, name: str) -> Undo | None:
        fleet = self._fleet
        if name == "broker":
            fleet.broker.kill()
            return fleet.broker.start
        if kind == "network":
            fleet.networks[name].cut()
            return fleet.networks[name].mend
        if kind == "freeze":
            process = fleet.parts[name].process
            if process is None or process.poll() is not None:
                return None
            process.send_signal(signal.SIGSTOP)
            return lambda: process.send_signal(signal.SIGCONT)
        if not fleet.kill(name):
            return None
        if kind == "power":
            fleet.tear_newest_state(name)
        return lambda: fleet.start(name)


def run(directory: Path, strategy: str, settings: Settings, faults: int, seed: int) -> dict[str, Any]:
    """One fleet to its end; its report, and what was done to it."""
    generator = random.Random(seed)
    started = time.monotonic()
    with Fleet(directory, settings.server(strategy), settings.devices()) as fleet:
        chaos = Faults(fleet, generator)
        next_fault = started + generator.uniform(5, 10)

        def disturb() -> None:
            nonlocal next_fault
            time.sleep(TICK)
            chaos.undo_due()
            if chaos.counts.total() < faults and time.monotonic() >= next_fault:
                chaos.inject()
                next_fault = time.monotonic() + generator.uniform(1, 8)

        until(lambda: fleet.finished, disturb)
        report = fleet.report()
        report["commits"] = len(
            {json.loads(line)["round"] for line in (directory / "server" / "history.jsonl").open()}
        )
        report["faults"] = dict(chaos.counts)
        report["network"] = next(iter(fleet.networks.values())).kind
    report["wall"] = time.monotonic() - started
    return report


def compare(calm: dict[str, Any], stormy: dict[str, Any], wanted: int) -> dict[str, Any]:
    """The benchmark's figures."""
    expected = calm["batches_trained"]
    result = {
        "benchmark": "chaos",
        "strategy": calm["strategy"],
        "faults": sum(stormy["faults"].values()),
        "by_kind": stormy["faults"],
        "network_cut_by": stormy["network"],
        "same_weights": calm["weights_sha256"] == stormy["weights_sha256"],
        "weights_sha256": stormy["weights_sha256"],
        "commits": [calm["commits"], stormy["commits"]],
        "batches_lost": max(0, expected - stormy["batches_trained"]),
        "batches_trained_twice": max(0, stormy["batches_trained"] - expected),
        "duplicates_dropped": stormy["duplicates_dropped"],
        "unexpected_exits": stormy["unexpected_exits"],
        "seconds": [round(calm["wall"], 1), round(stormy["wall"], 1)],
    }
    result["passed"] = (
        result["same_weights"]
        and result["commits"][0] == result["commits"][1]
        and not result["batches_lost"]
        and not result["batches_trained_twice"]
        and not result["unexpected_exits"]
        and result["faults"] >= wanted
    )
    return result


@click.command()
@click.option("--strategy", type=click.Choice(["sequential", "averaging", "both"]), default="both")
@click.option("--faults", default=20, show_default=True)
@click.option("--seed", default=1, show_default=True, help="Of the faults; the fleet's own seed is always 1.")
@click.option("--rounds", default=12, show_default=True)
@click.option("--samples", default=320, show_default=True, help="Training pictures a device.")
@out_option
def main(strategy: str, faults: int, seed: int, rounds: int, samples: int, out: Path | None) -> None:
    """Kill a fleet's parts at random; compare with an undisturbed run."""
    console = Console(stderr=True)
    settings = Settings(rounds, samples)
    strategies = ["sequential", "averaging"] if strategy == "both" else [strategy]
    passed = True
    with working_directory(out) as directory:
        for name, number in zip(strategies, itertools.count()):
            with console.status(f"{name}: undisturbed run"):
                calm = run(directory / f"{name}-calm", name, settings, 0, seed)
            with console.status(f"{name}: {faults} faults"):
                stormy = run(directory / f"{name}-stormy", name, settings, faults, seed + number)
            result = compare(calm, stormy, faults)
            passed = passed and bool(result["passed"])
            click.echo(json.dumps(result))
    sys.exit(not passed)


if __name__ == "__main__":
    main()
