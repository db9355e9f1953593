# SPDX-License-Identifier: Apache-2.0
"""The training job of all methods of a race: the demo's images, batches, learning rates and initial weights.

Flower's environment has no splitee, so its side reads them as arrays.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from splitee.networks.split import build_for
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import PROTOCOL
from splitee.training.epochs import epoch_batches, steps_per_round
from splitee.training.learning_rate import learning_rate
from splitee_device.data.images import DeviceData, Shard, open_data
from splitee_device.data.sources import open_source
from splitee_lab.demo.fleet import DATA, SMALL, DemoDevice

NETWORK = "resnet18"
LARGEST_FIRST = (7, 5, 3)  # cuts: the strongest device trains the most stages
SHARES = (1.0, 0.4, 0.15)  # of a core, by device


@dataclass(frozen=True)
class Job:
    """`samples`: maximum number of training images per device; None: its whole shard."""

    rounds: int
    samples: int | None
    seed: int

    @property
    def devices(self) -> list[DemoDevice]:
        count = len(LARGEST_FIRST)
        return [
            DemoDevice(f"pi-{number}", cut, f"{number}/{count}")
            for number, cut in enumerate(LARGEST_FIRST, start=1)
        ]

    @property
    def shares(self) -> dict[str, float]:
        """Share of a core, by device."""
        return {device.id: share for device, share in zip(self.devices, SHARES, strict=True)}

    @property
    def num_classes(self) -> int:
        return len(open_source(DATA).class_names)

    @property
    def spec(self) -> RunSpec:
        """The demo's settings that apply to training a whole network, too; all others are defaults."""
        return RunSpec(
            protocol=PROTOCOL,
            run="race",
            network=NETWORK,
            num_classes=self.num_classes,
            input_shape=SMALL,
            rounds=self.rounds,
            seed=self.seed,
            fused=True,
        )


def write(job: Job, folder: Path) -> None:
    """Write the job in the format of `benchmarks/flower_app`."""
    folder.mkdir()
    spec = job.spec
    settings = {
        "network": spec.network,
        "num_classes": spec.num_classes,
        "rounds": spec.rounds,
        "clients": len(job.devices),
        "momentum": spec.momentum,
        "weight_decay": spec.weight_decay,
        "mean": spec.mean[0],
        "std": spec.std[0],
    }
    (folder / "job.json").write_text(json.dumps(settings))
    initial = {name: tensor.numpy() for name, tensor in build_for(spec).module.state_dict().items()}
    _save(folder, "initial", initial)
    for device, data in _images(job):
        _save(folder, device, _training_arrays(spec, device, data))
        held_out = data.held_out.in_memory()
    _save(folder, "held-out", {"images": held_out.images, "labels": held_out.labels})


def _images(job: Job) -> Iterator[tuple[str, DeviceData]]:
    """Each device's images, as `splitee device` opens them."""
    for device in job.devices:
        shard = Shard.parse(device.shard)
        yield (
            device.id,
            open_data(DATA, input_shape=SMALL, shard=shard, seed=job.seed, limit=job.samples),
        )


def _training_arrays(spec: RunSpec, device: str, data: DeviceData) -> dict[str, np.ndarray]:
    """Images, labels, image indices of the batches (rounds, steps, batch), learning rates (rounds, steps)."""
    train = data.train.in_memory()
    steps = steps_per_round(spec, len(train))
    numbers = range(1, spec.rounds + 1)
    return {
        "images": train.images,
        "labels": train.labels,
        "batches": np.array([list(epoch_batches(spec, device, number, len(train))) for number in numbers]),
        "rates": np.array(
            [[learning_rate(spec, number, step, steps) for step in range(steps)] for number in numbers]
        ),
    }


def _save(folder: Path, name: str, arrays: Mapping[str, np.ndarray]) -> None:
    with (folder / f"{name}.npz").open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
