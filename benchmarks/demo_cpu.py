# SPDX-License-Identifier: Apache-2.0
"""CPU seconds and accuracy of the demo's fleet, compared with another checkout.

    python -m benchmarks.demo_cpu [--than ../before] [--repetitions 3] [-- --quick]

Runs `splitee demo --no-baselines`, and measures the user and system time of all processes that it starts,
including those that outlive it. Flags after `--` are the demo's. Prints one JSON line.
How much a CPU second achieves varies with other load on the machine. The checkouts therefore take turns, and
the median of each counts.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import click

from benchmarks.real_fleet import out_option, working_directory

PACKAGES = ("core", "device", "server", "export", "lab", "broker_config")
HERE = Path(__file__).parent.parent
PR_SET_CHILD_SUBREAPER = 36  # prctl(2): orphaned descendants become children of this process


def cpu_seconds() -> float:
    """User and system time of all descendants that have ended and were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(source: Path, out: Path, flags: tuple[str, ...]) -> dict[str, Any]:
    """Run the demo of a checkout; return its CPU seconds and the accuracy of its fleet."""
    path = os.pathsep.join(str(source / package) for package in PACKAGES)
    before = cpu_seconds()
    demo = ("-m", "splitee", "demo", "--quiet", "--no-baselines", "--out", str(out))
    finished = subprocess.run(
        [sys.executable, *demo, *flags],
        cwd=source,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        check=False,
    )
    if finished.returncode:
        raise click.ClickException(f"the demo of {source} ended with exit code {finished.returncode}")
    _wait_for_orphans()
    fleet = json.loads((out / "report.json").read_text())["fleet"]
    return {"cpu_seconds": round(cpu_seconds() - before, 2), "accuracy": fleet["adaptive_accuracy"]}


def _wait_for_orphans() -> None:
    """Wait for processes that outlive the demo, such as the one that others are forked from."""
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return


@click.command()
@click.option(
    "--than", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Checkout to compare with."
)
@click.option("--repetitions", type=click.IntRange(min=1), default=3, show_default=True)
@click.argument("flags", nargs=-1)
@out_option
def main(than: Path | None, repetitions: int, flags: tuple[str, ...], out: Path | None) -> None:
    """Measure the CPU time of the demo's fleet; FLAGS are passed to the demo."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    sources = {"here": HERE} if than is None else {"than": than.resolve(), "here": HERE}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in sources}
    with working_directory(out) as directory:
        for repetition in range(1, repetitions + 1):
            for name, source in sources.items():
                runs[name].append(run(source, directory.resolve() / f"{name}-{repetition}", flags))
                click.echo(f"{repetition}: {name} {runs[name][-1]['cpu_seconds']} s", err=True)
    medians = {name: round(median(one["cpu_seconds"] for one in done), 2) for name, done in runs.items()}
    result: dict[str, Any] = {"benchmark": "demo_cpu", "cpu_seconds": medians, "runs": runs}
    if than is not None:
        result["ratio"] = round(medians["here"] / medians["than"], 3)
    click.echo(json.dumps(result))


if __name__ == "__main__":
    main()
