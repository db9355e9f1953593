# SPDX-License-Identifier: Apache-2.0
"""How well `splitee profile` predicts: compared with training at every cut, unlimited and on parts of a core.

    python benchmarks/profile.py [--network NAME] [--freeze N] [--share PERCENT] [--memory] [--json]

`splitee profile` predicts each setting. Then every cut is trained twice in a process of its own, one after
the other, over a Mosquitto on loopback. The results are median errors of the step's time and of peak memory.
The machine's speed varies, so both sides time the same reference between their steps (profiler/reference.py),
and training times are scaled to the speed during the profile. "as timed" is the error without scaling,
"noise" the difference of the same step's time between the two passes. Cuts whose rounds are nearly as short
as the best are trained a few times more, to compare the recommended cut's round with the best.
`--memory` trains the recommended `deepest` cut under memory limits. CPU shares and memory limits are control
groups, which need root. Other load on the machine disturbs the result.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from splitee.protocol.run_spec import RunSpec
from splitee_lab.local.brokers import mosquitto

NETWORKS = ("resnet18", "mobilenet_v3_small")
SHARES = (0, 25, 50, 100)  # percent of a core; 0: unlimited
STEPS = 20  # per round
MAX_STEP_ERROR = 0.10
MAX_MEMORY_ERROR = 0.15
MAX_REGRET = 0.05  # by which the recommended cut's round may exceed the shortest, as a ratio
PASSES = 2  # trainings of each cut
CLOSE = 1.25  # times the shortest round: cuts up to it, and the recommended one, are trained again
FINAL_PASSES = 4
MIB = 1 << 20
MEMORY_MARGINS = (0, 10, 25, 50, 100, 200)  # MiB above the smallest limit that fits a cut
COMPARED = ("step", "memory", "round")
HEADINGS = (
    "network", "frozen", "share", "interpolated", "step error", "as timed", "noise", "memory error",
    "recommended", "best", "regret",
)  # fmt: skip
TRUTH = Path(__file__).with_name("profile_truth.py")
CGROUPS = Path("/sys/fs/cgroup")


@contextmanager
def small_device(share: int = 0, memory: int = 0) -> Iterator[list[str]]:
    """A prefix that limits a command to `share` percent of a core and `memory` bytes; 0: unlimited."""
    if not share and not memory:
        yield []
        return
    limits = (
        _limits_v2(share, memory) if (CGROUPS / "cgroup.controllers").exists() else _limits_v1(share, memory)
    )
    groups = []
    for group, files in limits.items():
        group.mkdir()
        groups.append(group)
        for name, value in files.items():
            (group / name).write_text(value)
    entering = "".join(f"echo $$ > {group}/cgroup.procs; " for group in groups)
    try:
        yield ["sh", "-c", f'{entering}exec "$@"', "small-device"]
    finally:
        for group in groups:
            group.rmdir()


def _limits_v1(share: int, memory: int) -> dict[Path, dict[str, str]]:
    limits = {}
    if share:
        files = {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": str(1000 * share)}
        limits[_own_group("cpu") / f"profile-{os.getpid()}"] = files
    if memory:
        limits[_own_group("memory") / f"profile-{os.getpid()}"] = {"memory.limit_in_bytes": str(memory)}
    return limits


def _limits_v2(share: int, memory: int) -> dict[Path, dict[str, str]]:
    files = {}
    if share:
        files["cpu.max"] = f"{1000 * share} 100000"
    if memory:
        files["memory.max"] = str(memory)
    return {CGROUPS / f"profile-{os.getpid()}": files}


def _own_group(controller: str) -> Path:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return CGROUPS / controller / path.strip("/")
    raise click.ClickException(f"no control groups for {controller}: --share 0 needs none")


@dataclass(frozen=True)
class Workload:
    """A training, of all stages of a network but the first `frozen`."""

    network: str
    frozen: int
    broker: str

    def spec(self) -> RunSpec:
        return RunSpec(
            protocol=1, run="truth", network=self.network, num_classes=10, rounds=100, steps=STEPS,
            frozen=self.frozen,
        )  # fmt: skip


def profile(prefix: list[str], workload: Workload, *flags: str) -> dict[str, Any]:
    """The JSON output of `splitee profile`."""
    command = [sys.executable, "-m", "splitee", "profile", "--json", "--network", workload.network]
    settings = {
        "--freeze": workload.frozen,
        "--steps": STEPS,
        "--samples": 64,
        "--broker": workload.broker,
    }
    done = subprocess.run(
        [
            *prefix,
            *command,
            "--input",
            "3x32x32",
            *(str(part) for setting in settings.items() for part in setting),
            *flags,
        ],
        stdout=subprocess.PIPE,
        check=False,
    )
    predicted: dict[str, Any] = json.loads(done.stdout)
    return predicted


def truth(prefix: list[str], workload: Workload, threads: int, *cuts: int) -> list[dict[str, Any]] | None:
    """Measurements of training at each of `cuts`, in order; None: the process was killed."""
    arguments = [workload.spec().encode().decode(), str(threads), workload.broker, *map(str, cuts)]
    # -P: without it, this file would hide the standard library's module `profile`.
    done = subprocess.run(
        [*prefix, sys.executable, "-P", str(TRUTH), *arguments], stdout=subprocess.PIPE, check=False
    )
    if done.returncode < 0 or done.returncode == 137:
        return None
    done.check_returncode()
    return [json.loads(line) for line in done.stdout.splitlines()]


def compare(workload: Workload, share: int, budget: float) -> dict[str, Any]:
    """Predict and train every cut on `share` percent of a core; `budget`: seconds of the profile."""
    with small_device(share) as prefix:
        predicted = profile(prefix, workload, "--budget", str(budget))
        recommended = predicted["recommended"]
        reals = real_costs(prefix, workload, predicted)
    rows = [
        {
            "cut": row["cut"],
            "interpolated": not row["measured"],
            **{name: row[name] for name in COMPARED},
            **{f"real_{name}": fmean(real[name] for real in reals[row["cut"]]) for name in COMPARED},
            "timed_step": fmean(real["timed_step"] for real in reals[row["cut"]]),
            "passes": len(reals[row["cut"]]),
        }
        for row in predicted["cuts"]
    ]
    real_rounds = {row["cut"]: row["real_round"] for row in rows}
    return {
        "network": workload.network,
        "frozen": workload.frozen,
        "share": share,
        "interpolated": sum(row["interpolated"] for row in rows),
        "step_error": median(_error(row["step"], row["real_step"]) for row in rows),
        "error_as_timed": median(_error(row["step"], row["timed_step"]) for row in rows),
        "noise": median(_error(first["step"], second["step"]) for first, second, *_ in reals.values()),
        "memory_error": median(_error(row["memory"], row["real_memory"]) for row in rows),
        "recommended": recommended,
        "best": min(real_rounds, key=lambda cut: real_rounds[cut]),
        "regret": real_rounds[recommended] / min(real_rounds.values()) - 1,
        "cuts": rows,
    }


def real_costs(
    prefix: list[str], workload: Workload, predicted: dict[str, Any]
) -> dict[int, list[dict[str, Any]]]:
    """Measurements of PASSES trainings per cut, and FINAL_PASSES more of the best and the recommended."""
    reals: dict[int, list[dict[str, Any]]] = {row["cut"]: [] for row in predicted["cuts"]}

    def train(cuts: list[int], passes: int) -> None:
        for _ in range(passes):
            for real in truth(prefix, workload, predicted["threads"], *cuts) or []:
                reals[real["cut"]].append(_at_speed(predicted["reference"], real))

    train(list(reals), PASSES)
    rounds = {cut: fmean(real["round"] for real in passes) for cut, passes in reals.items()}
    rivals = [cut for cut in reals if rounds[cut] <= CLOSE * min(rounds.values())]
    if rivals != [predicted["recommended"]]:
        train(sorted({predicted["recommended"], *rivals}), FINAL_PASSES)
    return reals


def _at_speed(reference: float, real: dict[str, Any]) -> dict[str, Any]:
    """`real` with its times scaled to a speed at which the reference takes `reference` seconds."""
    factor = reference / real["reference"]
    return {
        **real,
        "step": factor * real["step"],
        "round": factor * real["round"],
        "timed_step": real["step"],
    }


def _error(predicted: float, real: float) -> float:
    return abs(predicted - real) / real


def limits(workload: Workload) -> Iterator[dict[str, Any]]:
    """Train the recommended deepest cut under memory limits, from the smallest in which any cut fits."""
    free = profile([], workload, "--threads", "1", "--prefer", "deepest")
    smallest = min(row["needed"] for row in free["cuts"]) + free["reserve"]
    for margin in MEMORY_MARGINS:
        limit = smallest + margin * MIB
        with small_device(memory=limit) as prefix:
            predicted = profile(prefix, workload, "--threads", "1", "--prefer", "deepest")
            cut = predicted["recommended"]
            trains = None if cut is None else truth(prefix, workload, 1, cut) is not None
            deeper = None
            if cut is not None and cut < len(predicted["cuts"]):
                deeper = truth(prefix, workload, 1, cut + 1) is not None
        yield {
            "network": workload.network,
            "limit_mib": limit // MIB,
            "deepest": cut,
            "trains": trains,
            "one_deeper_is": "none" if cut is None else "last" if deeper is None else "refused",
            "one_deeper_would_train": deeper,
        }


def show(results: list[dict[str, Any]]) -> None:
    table = Table(header_style="bold")
    for heading in HEADINGS:
        table.add_column(heading, justify="right")
    for result in results:
        table.add_row(
            result["network"],
            str(result["frozen"]),
            f"{result['share']} %" if result["share"] else "all",
            f"{result['interpolated']} of {len(result['cuts'])}",
            f"{result['step_error']:.1%}",
            f"{result['error_as_timed']:.1%}",
            f"{result['noise']:.1%}",
            f"{result['memory_error']:.1%}",
            str(result["recommended"]),
            str(result["best"]),
            f"{result['regret']:.1%}",
        )
    console = Console(width=110)
    console.print(table)
    for target, key, bound in (
        ("step", "step_error", MAX_STEP_ERROR),
        ("peak memory", "memory_error", MAX_MEMORY_ERROR),
        ("recommended cut's round over the best", "regret", MAX_REGRET),
    ):
        met = sum(result[key] <= bound for result in results)
        console.print(f"{target} within {bound:.0%}: in {met} of {len(results)} settings", highlight=False)


@click.command()
@click.option("--network", "networks", multiple=True, default=NETWORKS, show_default=True)
@click.option("--freeze", type=int, default=0, show_default=True, help="First stages that are not trained.")
@click.option(
    "--share", "shares", multiple=True, type=int, default=SHARES, show_default=True, help="Percent; 0: all."
)
@click.option("--budget", type=float, default=120.0, show_default=True, help="Seconds of each profile.")
@click.option("--memory", is_flag=True, help="Memory limits instead of CPU shares.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line instead of tables.")
def main(
    networks: tuple[str, ...],
    freeze: int,
    shares: tuple[int, ...],
    budget: float,
    memory: bool,
    as_json: bool,
) -> None:
    """Compare the predictions of `splitee profile` with training."""
    with tempfile.TemporaryDirectory() as directory, mosquitto(Path(directory)) as broker:
        address = str(broker.address)
        workloads = [Workload(network, freeze, address) for network in networks]
        if memory:
            for workload in workloads:
                for result in limits(workload):
                    click.echo(json.dumps(result))
            return
        results = []
        for workload in workloads:
            for share in shares:
                results.append(compare(workload, share, budget))
                click.echo(json.dumps(results[-1]), err=True)
    if as_json:
        click.echo(json.dumps({"benchmark": "profile", "settings": results}))
    else:
        show(results)


if __name__ == "__main__":
    main()
