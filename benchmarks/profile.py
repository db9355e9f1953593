# SPDX-License-Identifier: Apache-2.0
"""How well `splitee profile` predicts: compared with training at every cut, unlimited and on parts of a core.

    python benchmarks/profile.py [--network NAME] [--freeze N] [--share PERCENT] [--memory] [--json]

Each setting is profiled by the command itself. Then every cut is trained in a process of its own, over a
Mosquitto on loopback, all cuts one after the other, twice. The results are median errors of the step and of
peak memory. The machine's speed varies, so both sides time the same reference between their steps
(profiler/reference.py), and training times are scaled to the speed during the profile. "as timed" is the
error without scaling, "noise" the difference of the same step between the two passes. Cuts whose rounds are
close to the best are trained in turns a few times more, to compare the recommended cut's round with the best.
`--memory` trains the recommended `deepest` cut under memory limits. CPU shares and memory limits are control
groups, which need root. Let nothing else run.
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
STEPS = 20  # of a round
MAX_STEP_ERROR = 0.10
MAX_MEMORY_ERROR = 0.15
MAX_REGRET = 0.05  # of the recommended cut's round against the best
PASSES = 2  # over all cuts
CLOSE = 1.25  # times the best round: with the recommended one, these cuts are trained again
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
    """The start of a command line that runs what follows on `share` percent of a core, in `memory` bytes."""
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
class Trained:
    """What is trained: all stages of a network, or those behind the first `frozen`."""

    network: str
    frozen: int
    broker: str

    def spec(self) -> RunSpec:
        return RunSpec(
            protocol=1, run="truth", network=self.network, num_classes=10, rounds=100, steps=STEPS,
            frozen=self.frozen,
        )  # fmt: skip


def profile(prefix: list[str], of: Trained, *flags: str) -> dict[str, Any]:
    """What the command says."""
    command = [sys.executable, "-m", "splitee", "profile", "--json", "--network", of.network]
    settings = {
        "--freeze": of.frozen,
        "--steps": STEPS,
        "--samples": 64,
        "--broker": of.broker,
    }
    done = subprocess.run(
        [
            *prefix,
            *command,
            "--input",
            "3x32x32",
            *(str(part) for one in settings.items() for part in one),
            *flags,
        ],
        stdout=subprocess.PIPE,
        check=False,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def truth(prefix: list[str], of: Trained, threads: int, *cuts: int) -> list[dict[str, Any]] | None:
    """What processes measure that train at the cuts, in their order; None: a single one was killed."""
    arguments = [of.spec().encode().decode(), str(threads), of.broker, *map(str, cuts)]
    # -P: in this folder, profile.py would hide the standard library's module of that name.
    done = subprocess.run(
        [*prefix, sys.executable, "-P", str(TRUTH), *arguments], stdout=subprocess.PIPE, check=False
    )
    if done.returncode < 0 or done.returncode == 137:
        return None
    done.check_returncode()
    return [json.loads(line) for line in done.stdout.splitlines()]


def compare(of: Trained, share: int, budget: float) -> dict[str, Any]:
    """One setting: every cut predicted and trained."""
    with small_device(share) as prefix:
        found = profile(prefix, of, "--budget", str(budget))
        chosen = found["recommended"]
        reals = real_costs(prefix, of, found)
    rows = [
        {
            "cut": row["cut"],
            "interpolated": not row["measured"],
            **{name: row[name] for name in COMPARED},
            **{f"real_{name}": fmean(real[name] for real in reals[row["cut"]]) for name in COMPARED},
            "timed_step": fmean(real["timed_step"] for real in reals[row["cut"]]),
            "passes": len(reals[row["cut"]]),
        }
        for row in found["cuts"]
    ]
    real_rounds = {row["cut"]: row["real_round"] for row in rows}
    return {
        "network": of.network,
        "frozen": of.frozen,
        "share": share,
        "interpolated": sum(row["interpolated"] for row in rows),
        "step_error": median(_error(row["step"], row["real_step"]) for row in rows),
        "error_as_timed": median(_error(row["step"], row["timed_step"]) for row in rows),
        "noise": median(_error(first["step"], second["step"]) for first, second, *_ in reals.values()),
        "memory_error": median(_error(row["memory"], row["real_memory"]) for row in rows),
        "recommended": chosen,
        "best": min(real_rounds, key=lambda cut: real_rounds[cut]),
        "regret": real_rounds[chosen] / min(real_rounds.values()) - 1,
        "cuts": rows,
    }


def real_costs(prefix: list[str], of: Trained, profiled: dict[str, Any]) -> dict[int, list[dict[str, Any]]]:
    """What training takes at each cut, in several passes; more of them for the recommended and its rivals."""
    reals: dict[int, list[dict[str, Any]]] = {row["cut"]: [] for row in profiled["cuts"]}

    def train(cuts: list[int], passes: int) -> None:
        for _ in range(passes):
            for real in truth(prefix, of, profiled["threads"], *cuts) or []:
                reals[real["cut"]].append(_at_speed(profiled["reference"], real))

    train(list(reals), PASSES)
    rounds = {cut: fmean(real["round"] for real in passes) for cut, passes in reals.items()}
    rivals = [cut for cut in reals if rounds[cut] <= CLOSE * min(rounds.values())]
    if rivals != [profiled["recommended"]]:
        train(sorted({profiled["recommended"], *rivals}), FINAL_PASSES)
    return reals


def _at_speed(reference: float, real: dict[str, Any]) -> dict[str, Any]:
    """What it would have taken where the reference takes `reference` seconds."""
    slower = reference / real["reference"]
    return {
        **real,
        "step": slower * real["step"],
        "round": slower * real["round"],
        "timed_step": real["step"],
    }


def _error(predicted: float, real: float) -> float:
    return abs(predicted - real) / real


def limits(of: Trained) -> Iterator[dict[str, Any]]:
    """The recommended deepest cut under memory limits, from the smallest that fits any cut up."""
    free = profile([], of, "--threads", "1", "--prefer", "deepest")
    smallest = min(row["needed"] for row in free["cuts"]) + free["reserve"]
    for margin in MEMORY_MARGINS:
        limit = smallest + margin * MIB
        with small_device(memory=limit) as prefix:
            found = profile(prefix, of, "--threads", "1", "--prefer", "deepest")
            cut = found["recommended"]
            trained = None if cut is None else truth(prefix, of, 1, cut) is not None
            deeper = None
            if cut is not None and cut < len(found["cuts"]):
                deeper = truth(prefix, of, 1, cut + 1) is not None
        yield {
            "network": of.network,
            "limit_mib": limit // MIB,
            "deepest": cut,
            "trains": trained,
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
@click.option("--freeze", type=int, default=0, show_default=True, help="Stages that are not trained.")
@click.option("--share", "shares", multiple=True, type=int, default=SHARES, show_default=True, help="0: all.")
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
    """Compare predictions with training."""
    with tempfile.TemporaryDirectory() as directory, mosquitto(Path(directory)) as broker:
        address = str(broker.address)
        trained = [Trained(network, freeze, address) for network in networks]
        if memory:
            for of in trained:
                for result in limits(of):
                    click.echo(json.dumps(result))
            return
        results = []
        for of in trained:
            for share in shares:
                results.append(compare(of, share, budget))
                click.echo(json.dumps(results[-1]), err=True)
    if as_json:
        click.echo(json.dumps({"benchmark": "profile", "settings": results}))
    else:
        show(results)


if __name__ == "__main__":
    main()
