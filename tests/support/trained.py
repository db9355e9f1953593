"""States of devices and a server after one round, trained in this process through the fleet's own classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from splitee.durable import StateDirectory
from splitee.networks.split import build_for
from splitee.protocol.fields import Strategy
from splitee.protocol.run_spec import RunSpec
from splitee_device.data.images import DeviceData, open_data
from splitee_device.training.store import DeviceStore
from splitee_device.training.trainer import ClientTrainer
from splitee_server.learning.strategies.base import make_strategy
from splitee_server.rounds.checkpoints import Checkpoints, Committed

CUTS = {"pi-1": 1, "pi-2": 2, "pi-3": 2}


@dataclass(frozen=True)
class Trained:
    """`path / DEVICE` and `path / "server"` are state directories."""

    path: Path
    spec: RunSpec
    data: DeviceData


def train(path: Path, strategy: Strategy = "sequential", network: str = "tiny_networks:tiny") -> Trained:
    """One round of devices with the cuts CUTS on a few of the built-in pictures."""
    data = open_data("builtin:fashion-mnist", input_shape=(3, 32, 32), limit=96)
    spec = RunSpec(
        protocol=1, run=f"run-{strategy}", network=network, num_classes=10, rounds=1, strategy=strategy
    )
    trunks = make_strategy(build_for(spec), spec)
    for device, cut in CUTS.items():
        trunks.join(device, cut)
        trainer = ClientTrainer(build_for(spec), cut, spec, device, data)
        for step, batch in enumerate(trainer.round(1)):
            features, labels = torch.from_numpy(batch.features), torch.from_numpy(batch.labels)
            trunks.train(device, features, labels, round_number=1, step=step, steps=trainer.steps)
        directory = StateDirectory(path / device)
        store = DeviceStore(directory, device, data)
        store.save(spec, cut, 1, trainer)
        store.finish(spec, cut)
        directory.close()
    trunks.aggregate(dict.fromkeys(CUTS, len(data.train)))
    directory = StateDirectory(path / "server")
    server = Checkpoints(directory)
    server.open(spec, fresh=True)
    server.save(Committed(1, trunks.state(), {}, [], data.class_names, "0" * 64, 0, 0.0))
    directory.close()
    return Trained(path, spec, data)
