"""States of devices and a server after one round, trained in this process through the fleet's own classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from splitee.durable import StateDirectory
from splitee.networks.split import build_for
from splitee.protocol.run_spec import RunSpec
from splitee_device.data.images import DeviceData, open_data
from splitee_device.training.store import DeviceStore
from splitee_device.training.trainer import ClientTrainer
from splitee_server.learning.fleet_model import Contribution, FleetModel
from splitee_server.rounds.checkpoints import Checkpoints, Committed

CUTS = {"pi-1": 1, "pi-2": 2, "pi-3": 2}


@dataclass(frozen=True)
class Trained:
    """`path / DEVICE` and `path / "server"` are state directories."""

    path: Path
    spec: RunSpec
    data: DeviceData


def train(path: Path, strategy: str = "sequential", network: str = "tiny_networks:tiny") -> Trained:
    """One round of devices with the cuts CUTS on a few of the built-in pictures."""
    data = open_data("builtin:fashion-mnist", input_shape=(3, 32, 32), limit=96)
    spec = RunSpec(
        protocol=1, run=f"run-{strategy}", network=network, num_classes=10, rounds=1, strategy=strategy
    )
    model = FleetModel(spec, build_for(spec))
    for device, cut in CUTS.items():
        model.join(device, cut, len(data.train))
        trainer = ClientTrainer(build_for(spec), cut, spec, device, data)
        for step, batch in enumerate(trainer.round(1)):
            features, labels = torch.from_numpy(batch.features), torch.from_numpy(batch.labels)
            model.train(device, features, labels, round_number=1, step=step, steps=trainer.steps)
        directory = StateDirectory(path / device)
        store = DeviceStore(directory, device, data)
        store.save(spec, cut, 1, trainer)
        store.finish(spec, cut)
        directory.close()
    model.commit(1, dict.fromkeys(CUTS, Contribution(len(data.train))))
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
    return Trained(path, spec, data)
