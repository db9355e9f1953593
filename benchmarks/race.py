# SPDX-License-Identifier: Apache-2.0
"""How soon, and with how much CPU time, do unequal devices reach an accuracy, compared with Flower?

    python -m benchmarks.race [--target 0.80] [--rounds N] [--methods splitee,fedavg,fedprox] [--out DIR]

Three devices, limited to 100, 40 and 15 % of a core (as root: by control groups), train the demo's job: a
resnet18 at 32 pixels on the built-in Fashion-MNIST. splitee consists of a Mosquitto, a server and three
devices at cuts 7, 5 and 3. fedavg and fedprox are Flower's: its SuperLink, three SuperNodes and `flwr run`,
in an environment that is created in --env. Flower's clients train the whole network, on the same images in
the same batches, with the same initial weights, optimizer and learning rates. The methods run one after the
other, each until it reaches the target, its rounds end, or --limit is over. The clock starts with the
devices' processes, when the server is up. CPU time is that of the devices' processes and their child
processes. Flower starts a new process, which imports torch again, for every message to a client. Therefore
the table also has the time of training steps alone; in seconds that of the slowest client of each round.
Other load on the machine disturbs the result.
Exits with 1 if splitee misses its bounds on time and CPU time, relative to Flower's FedAvg.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks.racing import fleet, flower
from benchmarks.racing.job import Job
from benchmarks.racing.outcome import Bound, Followed, Outcome, Round, bounds, ended
from benchmarks.racing.processes import require_shares
from benchmarks.real_fleet import working_directory
from splitee.cli.words import percent, size
from splitee_lab.local.processes import signals_unwind

OURS, RIVAL = "splitee", "fedavg"
METHODS = (OURS, RIVAL, "fedprox")
HEADINGS = (
    "method", "round", "accuracy", "adaptive", "seconds", "of them training", "device CPU s",
    "of them training", "server CPU s", "sent", "times ours",
)  # fmt: skip
WIDTH = 120


class Methods(click.ParamType[tuple[str, ...]]):
    """Names from METHODS, separated by commas."""

    name = "methods"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(name.strip() for name in value.split(",")))
        if unknown := [name for name in names if name not in METHODS]:
            self.fail(f"{', '.join(map(repr, unknown))}: expected some of {', '.join(METHODS)}", param, ctx)
        return names


def run(method: str, job: Job, target: float, limit: float, environment: Path, out: Path) -> Outcome:
    """Run a method until it reaches `target`, its rounds end, or `limit` seconds have passed."""
    directory = out / method
    directory.mkdir(parents=True)
    follow_method: Callable[[], Followed] = (
        partial(fleet.follow, job, directory)
        if method == OURS
        else partial(flower.follow, job, method, environment, directory)
    )
    rounds: list[Round] = []
    first_round, reason = None, None
    deadline = time.monotonic() + limit
    with closing(follow_method()) as updates:
        while reason is None:
            match next(updates):
                case Round() as evaluated:
                    rounds.append(evaluated)
                    click.echo(_progress(method, evaluated), err=True)
                case float() as seconds:
                    first_round = seconds
            reason = ended(rounds, target, job.rounds) or ("limit" if time.monotonic() > deadline else None)
    return Outcome(method, target, tuple(rounds), reason, first_round)


def _progress(method: str, one: Round) -> str:
    return (
        f"{method}: round {one.number}, {percent(one.accuracy)} after {one.seconds:.0f} s "
        f"and {one.device_cpu:.0f} s of the devices' CPU"
    )


def show(console: Console, outcomes: list[Outcome], checked: list[Bound]) -> None:
    """Print the results as a table, and whether the bounds are met."""
    ours = next((one.winning for one in outcomes if one.method == OURS), None)
    table = Table(header_style="bold")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for outcome in outcomes:
        table.add_row(*_row(outcome, ours))
    console.print(table)
    for outcome in outcomes:
        if outcome.winning is None:
            console.print(
                f"{outcome.method} did not reach {percent(outcome.target)}: ended by its {outcome.ended}",
                highlight=False,
            )
    for bound in checked:
        figure = "unknown" if bound.figure is None else f"{bound.figure:.2f}"
        console.print(
            f"{OURS} against {RIVAL}: {figure} {bound.name} (bound {bound.bound:g}): "
            f"{'met' if bound.met else 'missed'}",
            highlight=False,
        )


def _row(outcome: Outcome, ours: Round | None) -> list[str]:
    last = outcome.last
    if last is None:
        return [outcome.method, *("-" for _ in HEADINGS[1:])]
    return [
        outcome.method,
        str(last.number),
        percent(last.accuracy),
        "-" if last.adaptive is None else percent(last.adaptive),
        f"{last.seconds:.0f}",
        "-" if last.training_seconds is None else f"{last.training_seconds:.0f}",
        f"{last.device_cpu:.0f}",
        "-" if last.training is None else f"{last.training:.0f}",
        f"{last.server_cpu:.0f}",
        size(last.sent),
        "-" if ours is None else f"{last.seconds / ours.seconds:.2f}",
    ]


def check_bounds(outcomes: list[Outcome]) -> list[Bound]:
    """The bounds of splitee relative to FedAvg; none if one of the two was not run."""
    by_name = {outcome.method: outcome for outcome in outcomes}
    return bounds(by_name[OURS], by_name[RIVAL]) if {OURS, RIVAL} <= by_name.keys() else []


@click.command()
@click.option("--target", type=click.FloatRange(0, 1, min_open=True), default=0.8, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Rounds, at most.")
@click.option("--methods", type=Methods(), default=",".join(METHODS), show_default=True)
@click.option("--samples", type=click.IntRange(64), help="Training images per device.  [default: a third]")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
@click.option(
    "--limit", type=click.FloatRange(1), default=1500.0, show_default=True, help="Seconds per method."
)
@click.option(
    "--env",
    "environment",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs") / "flower-environment",
    show_default=True,
    help="Flower's environment of several GB; created if it does not exist.",
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Keep logs and states here.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line per method instead of the table.")
def main(
    target: float,
    rounds: int,
    methods: tuple[str, ...],
    samples: int | None,
    seed: int,
    limit: float,
    environment: Path,
    out: Path | None,
    as_json: bool,
) -> None:
    """Race to an accuracy on three unequal devices, against Flower."""
    if out is not None and out.exists() and any(out.iterdir()):
        raise click.BadParameter(f"{out} is not empty: name a new folder", param_hint="--out")
    require_shares()
    job = Job(rounds, samples, seed)
    with signals_unwind(), working_directory(out) as directory:
        if any(method != OURS for method in methods):
            flower.make_environment(environment)
        outcomes = [run(method, job, target, limit, environment, directory) for method in methods]
        checked = check_bounds(outcomes)
        records = [outcome.record() for outcome in outcomes]
        records += [{"benchmark": "race", "bounds": [vars(bound) for bound in checked]}] if checked else []
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (directory / "results.jsonl").write_text(lines)
    if as_json:
        click.echo(lines, nl=False)
    else:
        show(Console(width=WIDTH), outcomes, checked)
    sys.exit(not all(bound.met for bound in checked))


if __name__ == "__main__":
    main()
