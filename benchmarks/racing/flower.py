# SPDX-License-Identifier: Apache-2.0
"""Flower's side of a race: its SuperLink, three SuperNodes and `flwr run`, in a separate environment."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import click
import msgspec

from benchmarks.racing.job import Job, write
from benchmarks.racing.outcome import Followed, Round
from benchmarks.racing.processes import Processes
from splitee_lab.local.brokers import HOST, free_port
from splitee_lab.local.forked import without_settings

FLWR = "1.42.0"
SAME_HERE = ("torch", "torchvision", "numpy")  # packages that have the same versions on both sides
APP = Path(__file__).parents[1] / "flower_app"
PROXIMAL_MU = 0.01  # one of the values of Li et al., arXiv 1812.06127
SERVER = "superlink"  # its child processes run the strategy
TICK = 0.1  # seconds
LOADING = 120.0  # seconds within which the SuperLink must accept connections
LONGEST = 86_400.0  # seconds that Flower's server waits for a round; above the race's default --limit

CONNECTION = """\
[superlink]
default = "race"

[superlink.race]
address = "{address}"
insecure = true
"""


class FlowerRound(msgspec.Struct, frozen=True):
    """A line of the results of Flower's server; times are in seconds since the epoch."""

    round: int
    opened: float
    time: float
    accuracy: float
    weights_bytes: int
    clients: list[dict[str, float]]


def make_environment(folder: Path) -> None:
    """Make Flower's virtual environment, unless it exists; it shares no packages with this one.

    Raises ClickException: the environment could not be created, or pip could not install the packages.
    """
    requirements = [f"flwr=={FLWR}", *(f"{name}=={version(name).partition('+')[0]}" for name in SAME_HERE)]
    made = folder / "race.txt"
    if made.exists() and made.read_text().split() == requirements:
        return
    click.echo(f"making Flower's environment in {folder}: {' '.join(requirements)}", err=True)
    python = str(folder / "bin" / "python")
    commands = (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements],
    )
    for command in commands:
        if (code := subprocess.run(command, check=False).returncode) != 0:
            raise click.ClickException(f"Flower's environment cannot be made: {command[2]} ended with {code}")
    made.write_text("\n".join(requirements))


def follow(job: Job, strategy: str, environment: Path, directory: Path) -> Followed:
    """Run Flower until the generator is closed. `strategy`: fedavg or fedprox."""
    write(job, directory / "job")
    results = directory / "results.jsonl"
    results.touch()
    address = f"{HOST}:{free_port()}"
    home = directory / "flwr"
    home.mkdir()
    (home / "config.toml").write_text(CONNECTION.format(address=address))
    with Processes(directory, _environment_variables(environment, home)) as processes:
        processes.start(SERVER, _superlink(address))
        _await_superlink(address, processes)
        started = time.time()
        for device, share in job.shares.items():
            processes.start(device, _supernode(device, address, directory / "job"), share=share)
        processes.start("run", _run(strategy, directory / "job", results))
        yield from _rounds(results, processes, job, started)


def _environment_variables(environment: Path, home: Path) -> dict[str, str]:
    """Environment variables: Flower's programs are on PATH; telemetry and update checks are disabled."""
    inherited = without_settings()
    inherited.pop("PYTHONPATH", None)
    return {
        **inherited,
        "PATH": f"{environment.absolute() / 'bin'}{os.pathsep}{inherited.get('PATH', '')}",
        "FLWR_HOME": str(home.absolute()),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }


def _superlink(address: str) -> list[str]:
    host, port = address.split(":")
    listen = ["--host", host, "--port", port]
    return ["flower-superlink", "--insecure", *listen, "--disable-runtime-dependency-installation"]


def _supernode(device: str, superlink: str, job: Path) -> list[str]:
    config = f'client="{device}" job="{job.absolute()}"'
    addresses = ["--superlink", superlink, "--host", HOST, "--port", str(free_port())]
    return ["flower-supernode", "--insecure", *addresses, "--node-config", config]


def _run(strategy: str, job: Path, results: Path) -> list[str]:
    settings = {
        "job": f'"{job.absolute()}"',
        "results": f'"{results.absolute()}"',
        "strategy": f'"{strategy}"',
        "proximal-mu": PROXIMAL_MU,
        "limit": LONGEST,
    }
    config = " ".join(f"{name}={value}" for name, value in settings.items())
    return ["flwr", "run", str(APP), "race", "--stream", "--run-config", config]


def _await_superlink(address: str, processes: Processes) -> None:
    host, port = address.split(":")
    deadline = time.monotonic() + LOADING
    while time.monotonic() < deadline:
        processes.check()
        with suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            return
        time.sleep(TICK)
    raise click.ClickException(f"Flower's SuperLink accepts no connection on {address} after {LOADING:.0f} s")


def _rounds(results: Path, processes: Processes, job: Job, started: float) -> Followed:
    rounds: list[FlowerRound] = []
    with results.open() as file:
        line = ""
        while True:
            time.sleep(TICK)
            line += file.readline()
            if line.endswith("\n"):
                rounds.append(msgspec.json.decode(line, type=FlowerRound))
                line = ""
                if len(rounds) == 1:
                    yield rounds[0].opened - started
                yield _as_round(rounds, processes.cpu_seconds([*job.shares, SERVER]), started)
            else:
                yield None
            processes.check()


def _as_round(rounds: list[FlowerRound], cpu: dict[str, float], started: float) -> Round:
    """The last of `rounds`. `cpu`: CPU seconds so far, by process."""
    last = rounds[-1]
    return Round(
        number=last.round,
        seconds=last.time - started,
        accuracy=last.accuracy,
        cpu={name: seconds for name, seconds in cpu.items() if name != SERVER},
        server_cpu=cpu[SERVER],
        sent=sum(len(each.clients) * each.weights_bytes for each in rounds),
        training=sum(client["cpu-seconds"] for each in rounds for client in each.clients),
        training_seconds=sum(max(client["seconds"] for client in each.clients) for each in rounds),
    )
