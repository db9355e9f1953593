# SPDX-License-Identifier: Apache-2.0
"""States and models of devices and a server after one round, trained with the product's classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import warm  # noqa: F401  sets the modules that forked processes have loaded
from once import made_once

from splitee.durable import StateDirectory
from splitee.networks.split import build_for
from splitee.protocol.run_spec import RunSpec
from splitee.samples.storage import Samples
from splitee_device.data.device_images import DeviceImages
from splitee_device.data.images import DeviceData, open_data
from splitee_device.training.store import DeviceStore
from splitee_device.training.trainer import ClientTrainer
from splitee_export.models import export_client, export_trunks
from splitee_export.states import DeviceState, ServerState, read_state
from splitee_lab.local.forked import start
from splitee_server.learning.fleet_model import Contribution, FleetModel
from splitee_server.rounds.checkpoints import Checkpoints, Committed

NETWORK = "tiny_networks:tiny"
CUTS = {"pi-1": 1, "pi-2": 2, "pi-3": 2}


@dataclass(frozen=True)
class Trained:
    """`path / NAME`: state directory, and `model(NAME)`: model, of each device in CUTS and of "server"."""

    path: Path
    spec: RunSpec
    data: DeviceData

    def model(self, name: str) -> Path:
        """The folder of an exported model."""
        return _model(self.path, name)


def trained_once(factory: pytest.TempPathFactory, strategy: str) -> Trained:
    """Train one round of the devices CUTS, all on the same 96 built-in images, and export their models."""
    data = open_data("builtin:fashion-mnist", input_shape=(3, 32, 32), limit=96)
    spec = RunSpec(
        protocol=1,
        run=f"run-{strategy}",
        network=NETWORK,
        num_classes=10,
        rounds=1,
        strategy=strategy,
    )

    def make(path: Path) -> None:
        process = start(_make, path, spec, data)  # its parent has exported before, which saves time
        process.join()
        assert process.exitcode == 0

    return Trained(made_once(factory, f"trained-{strategy}", make), spec, data)


def _make(path: Path, spec: RunSpec, data: DeviceData) -> None:
    torch.set_num_threads(1)
    _train(path, spec, data)
    _export(path)


def _train(path: Path, spec: RunSpec, data: DeviceData) -> None:
    model = FleetModel(spec, build_for(spec))
    for device, cut in CUTS.items():
        model.join(device, cut, len(data.train))
        trainer = ClientTrainer(build_for(spec), cut, spec, device, data)
        for step, batch in enumerate(trainer.round(1)):
            features, labels = torch.from_numpy(batch.features), torch.from_numpy(batch.labels)
            model.train(device, features, labels, round_number=1, step=step, steps=trainer.steps)
        directory = StateDirectory(path / device)
        store = DeviceStore(directory, device, DeviceImages(lambda _, data=data: data))
        store.save(spec, cut, 1, trainer)
        store.finish(spec, cut)
        directory.close()
    model.commit(1, dict.fromkeys(CUTS, Contribution()))
    directory = StateDirectory(path / "server")
    server = Checkpoints(directory)
    server.open(spec, fresh=True)
    server.save(
        Committed(
            round=1,
            members=[],
            class_names=data.class_names,
            weights_sha256="0" * 64,
            duplicates=0,
            seconds=0.0,
            **model.state(),
        )
    )
    directory.close()


def _export(path: Path) -> None:
    for device in CUTS:
        state = read_state(path / device, NETWORK)
        assert isinstance(state, DeviceState)
        export_client(state, Samples.read(path / device), _model(path, device))
    server = read_state(path / "server", NETWORK)
    assert isinstance(server, ServerState)
    export_trunks(server, _model(path, "server"))


def _model(path: Path, name: str) -> Path:
    return path / "model" / name
