# SPDX-License-Identifier: Apache-2.0
"""CPU seconds and accuracy of the demo's fleet, in turns with another checkout.

    python -m benchmarks.demo_cpu [--than ../before] [--repetitions 3] [-- --quick]

Runs `splitee demo --no-baselines`, and measures the user and system time of all processes that it starts,
from the first import to the last prediction, including those that outlive it. Flags after `--` are the
demo's.
Prints one JSON line. The work of a CPU second varies with other load on the machine. The checkouts therefore
take turns, and the median of each counts.
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
PR_SET_CHILD_SUBREAPER = 36  # of prctl(2): orphans among its descendants become a process's own children


def cpu_seconds() -> float:
    """Of all descendants that have ended and were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(source: Path, out: Path, flags: tuple[str, ...]) -> dict[str, Any]:
    """One demo of a checkout: its CPU seconds, and the accuracy of its fleet."""
    path = os.pathsep.join(str(source / package) for package in PACKAGES)
    before = cpu_seconds()
    demo = ("-m", "splitee", "demo", "--quiet", "--no-baselines", "--out", str(out))
    ended = subprocess.run(
        [sys.executable, *demo, *flags],
        cwd=source,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        check=False,
    )
    if ended.returncode:
        raise click.ClickException(f"the demo of {source} has ended with exit code {ended.returncode}")
    _wait_for_orphans()
    fleet = json.loads((out / "report.json").read_text())["fleet"]
    return {"cpu_seconds": round(cpu_seconds() - before, 2), "accuracy": fleet["adaptive_accuracy"]}


def _wait_for_orphans() -> None:
    """Such as the process that others were forked from."""
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return


@click.command()
@click.option(
    "--than", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Another checkout."
)
@click.option("--repetitions", type=click.IntRange(min=1), default=3, show_default=True)
@click.argument("flags", nargs=-1)
@out_option
def main(than: Path | None, repetitions: int, flags: tuple[str, ...], out: Path | None) -> None:
    """Measure what the demo's fleet takes, with FLAGS of the demo."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    sources = {"here": HERE} if than is None else {"than": than.resolve(), "here": HERE}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in sources}
    with working_directory(out) as directory:
        for repetition in range(1, repetitions + 1):
            for name, source in sources.items():
                runs[name].append(run(source, directory.resolve() / f"{name}-{repetition}", flags))
                click.echo(f"{repetition}: {name} {runs[name][-1]['cpu_seconds']} s", err=True)
    typical = {name: round(median(one["cpu_seconds"] for one in found), 2) for name, found in runs.items()}
    result: dict[str, Any] = {"benchmark": "demo_cpu", "cpu_seconds": typical, "runs": runs}
    if than is not None:
        result["ratio"] = round(typical["here"] / typical["than"], 3)
    click.echo(json.dumps(result))


if __name__ == "__main__":
    main()
