# SPDX-License-Identifier: Apache-2.0
"""How much memory and disk space do trunks need on a server that averages, all at once or in waves?

    python -m benchmarks.resident [--devices 3,10,20,100] [--resident 0,1] [--momentum dropped]

The server's models of a resnet18 fleet train on random features: two rounds of one batch per device, averaged
layer by layer and committed to disk. Each fleet has a process of its own, whose peak of resident memory
counts. Prints a JSON line per fleet. Exits with 1 if fleets that differ only in --resident have different
weights, or if a fleet in waves needs too much memory or too large a commit.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.peak_memory import PeakMemory, megabytes
from splitee.durable import StateDirectory
from splitee.networks.split import build_for
from splitee.protocol.run_spec import RunSpec
from splitee.training.state import fleet_digest
from splitee.training.weights import client_model
from splitee_server.learning.fleet_model import Contribution, FleetModel
from splitee_server.learning.lanes import in_order
from splitee_server.rounds.checkpoints import Checkpoints, Committed

CUTS = (2, 3, 5)  # assigned to the devices in turn
BATCH = 8
ROUNDS = 2
MOST_MEMORY = 3000.0  # MB (2^20 bytes) of a server with trunks in waves, at any number of devices
MOST_COMMIT = 200.0  # MB (2^20 bytes)


@dataclass(frozen=True)
class Fleet:
    """Settings. `resident`: trunks in memory at a time, 0: all; `momentum`: RunSpec.trunk_momentum."""

    devices: int
    resident: int
    momentum: Any

    @property
    def spec(self) -> RunSpec:
        return RunSpec(
            protocol=1,
            run="resident",
            network="resnet18",
            num_classes=10,
            rounds=ROUNDS,
            strategy="averaging",
            batch_size=BATCH,
            steps=1,
            trunk_momentum=self.momentum,
        )


class Server:
    """The server's models of a fleet and their commits, without devices and broker."""

    def __init__(self, fleet: Fleet, directory: StateDirectory) -> None:
        self._resident = fleet.resident
        self._model = FleetModel(fleet.spec, build_for(fleet.spec))
        self._checkpoints = Checkpoints(directory)
        self._spec = self._checkpoints.open(fleet.spec, fresh=True)
        names = in_order(f"pi-{number}" for number in range(fleet.devices))
        self._cuts = {name: CUTS[index % len(CUTS)] for index, name in enumerate(names)}
        for name, cut in self._cuts.items():
            self._model.join(name, cut, BATCH)
        self._clients = {cut: client_model(self._model.network, cut, self._spec).state_dict() for cut in CUTS}

    def round(self, number: int) -> str:
        """Train and commit round `number`; the digest of its weights."""
        generator = torch.Generator().manual_seed(number)
        for device, cut in self._cuts.items():
            features = torch.randn(BATCH, *self._model.feature_shape(cut), generator=generator)
            labels = torch.randint(0, 10, (BATCH,), generator=generator)
            self._model.train(device, features, labels, round_number=number, step=0, steps=1)
            if self._resident:
                self._model.sum_up(device)
        contributions = {
            device: Contribution({name: weight.clone() for name, weight in self._clients[cut].items()})
            for device, cut in self._cuts.items()
        }
        self._model.commit(number, contributions)
        digests = {device: self._model.digest(device) for device in self._cuts}
        digest = fleet_digest(self._model.trunk_weights(), digests)
        committed = Committed(
            round=number,
            members=[],
            class_names=(),
            weights_sha256=digest,
            duplicates=0,
            seconds=0.0,
            **self._model.state(),
        )
        self._checkpoints.save(committed, changes_follow=False)
        return digest


def measure(fleet: Fleet) -> dict[str, Any]:
    """Memory, size of a commit and CPU seconds; call it in a process of its own."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, closing(StateDirectory(Path(folder))) as directory:
        server, started = Server(fleet, directory), time.process_time()
        digests = [server.round(number) for number in range(1, ROUNDS + 1)]
        seconds = (time.process_time() - started) / ROUNDS
        commit = (Path(folder) / f"round-{ROUNDS:06d}.state").stat().st_size
    peak = PeakMemory({"server": os.getpid()}).peaks()["server"]
    sizes = megabytes({"peak": peak, "commit": commit})
    return {**vars(fleet), **sizes, "cpu_seconds_a_round": round(seconds, 2), "weights": digests[-1][:16]}


def faults(found: Iterable[dict[str, Any]]) -> list[str]:
    """A line for each bound that is missed."""
    lines: list[str] = []
    weights: dict[int, str] = {}
    for row in found:
        if weights.setdefault(row["devices"], row["weights"]) != row["weights"]:
            lines.append(f"{row['devices']} devices, --resident {row['resident']}: different weights")
        if row["resident"] and (row["peak"] > MOST_MEMORY or row["commit"] > MOST_COMMIT):
            lines.append(f"{row['devices']} devices: {row['peak']} MB of memory, {row['commit']} MB a commit")
    return lines


def _numbers(_context: click.Context, _parameter: click.Parameter, value: str) -> list[int]:
    return [int(number) for number in value.split(",")]


@click.command()
@click.option("--devices", default="3,10,20,100", callback=_numbers, help="Numbers of devices.")
@click.option("--resident", default="0,1", callback=_numbers, help="Trunks in memory at a time; 0: all.")
@click.option("--momentum", type=click.Choice(["kept", "dropped"]), default="dropped")
def main(devices: list[int], resident: list[int], momentum: str) -> None:
    found = []
    for fleet in (Fleet(count, trunks, momentum) for count in devices for trunks in resident):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found.append(pool.apply(measure, (fleet,)))
        print(json.dumps(found[-1]), flush=True)
    for line in (wrong := faults(found)):
        print(line, file=sys.stderr)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
