# SPDX-License-Identifier: Apache-2.0
"""Does a run with faults end with the same weights, bit for bit? Compares it with an undisturbed run.

    python -m benchmarks.chaos [--strategy NAME|all] [--faults 20] [--seed 1]

A real fleet on a real Mosquitto. At seeded random moments the broker, the server or a device is killed with
SIGKILL. The server and devices are also killed with the newest state file torn, as by a power cut, or frozen,
or their clocks jump by a year; the server is also killed twice in a row. A device's network is cut for up to
4 seconds or for more than 35, or its messages are throttled. Each fault ends later.
Prints one JSON line per strategy, and exits with 1 if a figure is out of its bounds.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from benchmarks.broker_store import LARGEST_STORE, abandoned_sessions
from benchmarks.faults import Faults
from benchmarks.real_fleet import TICK, Fleet, Settings, out_option, working_directory
from splitee_server.learning.strategies.registry import STRATEGIES

DEAD_PATH = 31.0  # seconds within which a device must notice a dead network; its log has whole seconds


def run(directory: Path, strategy: str, settings: Settings, faults: int, seed: int) -> dict[str, Any]:
    """Run one fleet to its end; return its report, with the faults and the broker's figures."""
    generator = random.Random(seed)
    started = time.monotonic()
    with Fleet(
        directory,
        settings.server(strategy),
        settings.devices(),
        throttled={"pi-2": "disconnect", "pi-3": "refuse"},
        keeps_store=True,
        own_clocks=True,
    ) as fleet:
        chaos = Faults(fleet, generator)
        next_fault = started + generator.uniform(5, 10)

        def disturb() -> None:
            nonlocal next_fault
            time.sleep(TICK)
            chaos.undo_due()
            fleet.database.measure()
            if chaos.counts.total() < faults and time.monotonic() >= next_fault:
                chaos.inject()
                next_fault = time.monotonic() + generator.uniform(1, 8)

        fleet.until(lambda: fleet.finished and not chaos.affects("broker"), disturb)
        report = fleet.report()
        report["commits"] = len(
            {json.loads(line)["round"] for line in (directory / "server" / "history.jsonl").open()}
        )
        report["faults"] = dict(chaos.counts)
        report["noticed"] = chaos.noticed
        report["abandoned_sessions"] = abandoned_sessions(fleet.broker.address)
        fleet.database.saved(fleet.pids["broker"])
        report["broker_store"] = fleet.database.largest
        report["network"] = next(iter(fleet.networks.values())).kind
    report["wall"] = time.monotonic() - started
    return report


def compare(calm: dict[str, Any], disturbed: dict[str, Any], wanted: int) -> dict[str, Any]:
    """The benchmark's figures, from the reports of both runs; `wanted`: number of faults."""
    expected = calm["batches_trained"]
    result = {
        "benchmark": "chaos",
        "strategy": calm["strategy"],
        "faults": sum(disturbed["faults"].values()),
        "by_kind": disturbed["faults"],
        "network_cut_by": disturbed["network"],
        "same_weights": calm["weights_sha256"] == disturbed["weights_sha256"],
        "weights_sha256": disturbed["weights_sha256"],
        "commits": [calm["commits"], disturbed["commits"]],
        "batches_lost": max(0, expected - disturbed["batches_trained"]),
        "batches_trained_twice": max(0, disturbed["batches_trained"] - expected),
        "duplicates_dropped": disturbed["duplicates_dropped"],
        "dead_paths_noticed_after": disturbed["noticed"],
        "broker_store_kb": [round(one["broker_store"] / 1000) for one in (calm, disturbed)],
        "abandoned_sessions": disturbed["abandoned_sessions"],
        "unexpected_exits": disturbed["unexpected_exits"],
        "seconds": [round(calm["wall"], 1), round(disturbed["wall"], 1)],
    }
    result["passed"] = (
        result["same_weights"]
        and result["commits"][0] == result["commits"][1]
        and not result["batches_lost"]
        and not result["batches_trained_twice"]
        and all(seconds is not None and seconds <= DEAD_PATH for seconds in disturbed["noticed"])
        and max(calm["broker_store"], disturbed["broker_store"]) < LARGEST_STORE
        and not result["abandoned_sessions"]
        and not result["unexpected_exits"]
        and result["faults"] >= wanted
    )
    return result


@click.command()
@click.option("--strategy", type=click.Choice([*STRATEGIES, "all"]), default="all")
@click.option("--faults", default=20, show_default=True)
@click.option("--seed", default=1, show_default=True, help="Seed of the faults; that of the training is 1.")
@click.option("--rounds", default=12, show_default=True)
@click.option("--samples", default=320, show_default=True, help="Training images per device.")
@out_option
def main(strategy: str, faults: int, seed: int, rounds: int, samples: int, out: Path | None) -> None:
    """Inject random faults into a fleet; compare it with an undisturbed run."""
    console = Console(stderr=True)
    settings = Settings(rounds, samples)
    strategies = list(STRATEGIES) if strategy == "all" else [strategy]
    passed = True
    with working_directory(out) as directory:
        for name, number in zip(strategies, itertools.count()):
            with console.status(f"{name}: undisturbed run"):
                calm = run(directory / f"{name}-calm", name, settings, 0, seed)
            with console.status(f"{name}: {faults} faults"):
                disturbed = run(directory / f"{name}-stormy", name, settings, faults, seed + number)
            result = compare(calm, disturbed, faults)
            passed = passed and bool(result["passed"])
            click.echo(json.dumps(result))
    sys.exit(not passed)


if __name__ == "__main__":
    main()
