# SPDX-License-Identifier: Apache-2.0
"""Flower's side of a race: its SuperLink, three SuperNodes and `flwr run`, in an environment of their own."""

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
SAME_HERE = ("torch", "torchvision", "numpy")  # the versions that our side computes with
APP = Path(__file__).parents[1] / "flower_app"
PROXIMAL_MU = 0.01  # one of the values that Li et al. tried, arXiv 1812.06127
SERVER = "superlink"  # and what it starts: the strategy runs there
TICK = 0.1  # seconds
LOADING = 120.0  # seconds until the SuperLink must accept connections
LONGEST = 86_400.0  # seconds that Flower's server waits for a round: the race's own limit comes first

CONNECTION = """\
[superlink]
default = "race"

[superlink.race]
address = "{address}"
insecure = true
"""


class FlowerRound(msgspec.Struct, frozen=True):
    """A line of the server's; times are of the epoch's clock."""

    round: int
    opened: float
    time: float
    accuracy: float
    weights_bytes: int
    clients: list[dict[str, float]]


def make_environment(folder: Path) -> None:
    """Makes Flower's environment, if it is not there yet; it shares nothing with this one.

    Raises ClickException: pip could not install it.
    """
    wanted = [f"flwr=={FLWR}", *(f"{name}=={version(name).partition('+')[0]}" for name in SAME_HERE)]
    made = folder / "race.txt"
    if made.exists() and made.read_text().split() == wanted:
        return
    click.echo(f"making Flower's environment in {folder}: {' '.join(wanted)}", err=True)
    python = str(folder / "bin" / "python")
    commands = (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted],
    )
    for command in commands:
        if (code := subprocess.run(command, check=False).returncode) != 0:
            raise click.ClickException(f"Flower's environment cannot be made: {command[2]} ended with {code}")
    made.write_text("\n".join(wanted))


def follow(job: Job, strategy: str, environment: Path, directory: Path) -> Followed:
    """Runs Flower until it is left. `strategy`: fedavg or fedprox."""
    write(job, directory / "job")
    results = directory / "results.jsonl"
    results.touch()
    address = f"{HOST}:{free_port()}"
    home = directory / "flwr"
    home.mkdir()
    (home / "config.toml").write_text(CONNECTION.format(address=address))
    with Processes(directory, _variables(environment, home)) as processes:
        processes.start(SERVER, _superlink(address))
        _await_superlink(address, processes)
        started = time.time()
        for device, share in job.shares.items():
            processes.start(device, _supernode(device, address, directory / "job"), share=share)
        processes.start("run", _run(strategy, directory / "job", results))
        yield from _rounds(results, processes, job, started)


def _variables(environment: Path, home: Path) -> dict[str, str]:
    """Flower finds its own programs on PATH; it sends no telemetry and looks for no update."""
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
    where = ["--host", host, "--port", port]
    return ["flower-superlink", "--insecure", *where, "--disable-runtime-dependency-installation"]


def _supernode(device: str, superlink: str, job: Path) -> list[str]:
    config = f'client="{device}" job="{job.absolute()}"'
    where = ["--superlink", superlink, "--host", HOST, "--port", str(free_port())]
    return ["flower-supernode", "--insecure", *where, "--node-config", config]


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
    raise click.ClickException(f"Flower's SuperLink accepts nothing on {address} after {LOADING:.0f} s")


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
    """The last of the rounds. `cpu`: the devices' and the server's, by process."""
    last = rounds[-1]
    return Round(
        number=last.round,
        seconds=last.time - started,
        accuracy=last.accuracy,
        cpu={name: seconds for name, seconds in cpu.items() if name != SERVER},
        server_cpu=cpu[SERVER],
        sent=sum(len(one.clients) * one.weights_bytes for one in rounds),
        training=sum(client["cpu-seconds"] for one in rounds for client in one.clients),
        training_seconds=sum(max(client["seconds"] for client in one.clients) for one in rounds),
    )
