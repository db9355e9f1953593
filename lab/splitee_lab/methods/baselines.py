# SPDX-License-Identifier: Apache-2.0
"""The baselines of a fleet: training on all images in one place, and on each device alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splitee.networks.frozen import set_training
from splitee.networks.split import SplitNetwork, build_for
from splitee.protocol.cut_batch import EVALUATION_BATCH
from splitee.protocol.run_spec import RunSpec
from splitee.training.augmentation import augment
from splitee.training.epochs import epoch_batches, steps_per_round
from splitee.training.learning_rate import learning_rate, set_rate
from splitee.training.objective import class_offsets
from splitee.training.optimizer import make_optimizer
from splitee.training.placement import lay_out, precision_at, seed_at
from splitee.training.seeds import seed_for
from splitee_device.data.batches import batch, batches_at
from splitee_device.data.image_sets import LabelledImages, joined
from splitee_device.data.images import DeviceData, Shard, open_data
from splitee_device.training.baseline import exit_accuracy, standalone_spec
from splitee_device.training.trainer import open_trainer
from splitee_lab.local.workers import run_in_workers

CENTRALIZED: Final = "centralized"
ALONE: Final = "alone"
ALONE_EXIT: Final = "alone-exit"
REPORT_EVERY = 8  # steps


class DataSource(msgspec.Struct, frozen=True):
    """The images of the fleet's devices: `spec` and `limit` as `splitee device` takes them."""

    spec: str
    limit: int | None = None


class Baseline(msgspec.Struct, frozen=True):
    """One network to train, on the images of all `shards` ("K/N") together, with the fleet's settings.

    Attributes:
        device: whose batches and seeds it has; of CENTRALIZED, its own name.
        cut: of ALONE_EXIT, which trains stages 1..cut and their exit, as a device does; else the network is
            whole.
    """

    kind: Literal["centralized", "alone", "alone-exit"]
    device: str
    run: RunSpec
    data: DataSource
    shards: tuple[str, ...]
    cut: int = 0

    @property
    def name(self) -> str:
        return CENTRALIZED if self.kind == CENTRALIZED else f"{self.device} {self.kind}"

    @property
    def title(self) -> str:
        return f"baseline {self.name!r}"


@dataclass(frozen=True)
class Progress:
    """The progress of one baseline: `accuracy` (a fraction, on the held-out images) when it is done."""

    name: str
    step: int
    steps: int
    loss: float
    accuracy: float | None = None


def baselines_of(
    run: RunSpec, data: DataSource, shards: Mapping[str, str], cuts: Mapping[str, int]
) -> list[Baseline]:
    """All baselines, the longest first, so that at the end no single process is still busy with one.

    Centralized; each device alone with the whole network; then with what it can train, the deepest cut first.
    `shards`, `cuts`: by device id.
    """
    deepest_first = sorted(cuts, key=lambda device: -cuts[device])
    return [
        Baseline(CENTRALIZED, CENTRALIZED, run, data, tuple(shards.values())),
        *(Baseline(ALONE, device, run, data, (shard,)) for device, shard in shards.items()),
        *(
            Baseline(ALONE_EXIT, device, run, data, (shards[device],), cuts[device])
            for device in deepest_first
        ),
    ]


def train_all(
    baselines: Sequence[Baseline], workers: int, show: Callable[[Progress], None]
) -> dict[Baseline, float]:
    """The held-out accuracy of each, trained in `workers` processes at once.

    Raises:
        ChildFailed: one failed, or its process ended before its result.
    """
    accuracies: dict[Baseline, float] = {}
    with run_in_workers(baselines, _train, workers) as updates:
        for baseline, progress in updates:
            show(progress)
            if progress.accuracy is not None:
                accuracies[baseline] = progress.accuracy
    return accuracies


def train(baseline: Baseline) -> Iterator[Progress]:
    """Trains one baseline in this process, with the seeds, schedule and batch size of the fleet's run."""
    training = _training(baseline)
    rounds = baseline.run.rounds
    steps = rounds * training.steps
    for number in range(1, rounds + 1):
        for step, loss in enumerate(training.round(number), start=1):
            done = (number - 1) * training.steps + step
            if done % REPORT_EVERY == 0:
                yield Progress(baseline.name, done, steps, loss)
    yield Progress(baseline.name, steps, steps, loss, training.accuracy())


class WholeTrainer:
    """The whole network in one place, trained as a device trains its part: same batches, seeds, schedule."""

    def __init__(self, network: SplitNetwork, run: RunSpec, name: str, labelled: LabelledImages) -> None:
        lay_out(network.module, run.precision)
        self.network = network.module
        self._frozen = network.frozen_modules
        self.steps = steps_per_round(run, len(labelled))
        self._run = run
        self._name = name
        self._images = labelled
        self._place = next(self.network.parameters()).device
        self._offsets = class_offsets(run, labelled.labels).to(self._place)
        self._batches = batches_at(self._place, labelled, run)
        self.forget_momentum()

    def forget_momentum(self) -> None:
        self._optimizer = make_optimizer(self.network.parameters(), self._run)

    def round(self, number: int) -> Iterator[float]:
        """Trains round `number` (from 1), yielding each batch's loss."""
        run = self._run
        set_training(self.network, self._frozen)
        order = epoch_batches(run, self._name, number, len(self._images))
        for step, one in enumerate(self._batches(order)):
            seed_at(self._place, seed_for(run.seed, self._name, number, step))
            set_rate(self._optimizer, learning_rate(run, number, step, self.steps))
            images = augment(one.images, run)
            with precision_at(self._place, run.precision):
                logits = self.network(images)
            loss = F.cross_entropy(logits.float() + self._offsets, one.labels)
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            yield loss.item()


def evaluate(network: nn.Module, labelled: LabelledImages, run: RunSpec) -> float:
    """The share of `labelled` that the network predicts correctly."""
    network.eval()
    place = next(network.parameters()).device
    correct = 0
    for images, labels in held_out_batches(labelled, run):
        with torch.inference_mode():
            correct += int((network(images.to(place)).argmax(dim=1).cpu() == labels).sum())
    return correct / len(labelled)


def held_out_batches(labelled: LabelledImages, run: RunSpec) -> Iterator[tuple[Tensor, Tensor]]:
    """All of `labelled`, normalised (B, C, H, W), with their labels (B,)."""
    for indices in np.array_split(np.arange(len(labelled)), -(-len(labelled) // EVALUATION_BATCH)):
        yield batch(labelled, indices, run.mean, run.std)


@dataclass(frozen=True)
class _Training:
    """Batches per round, the training of round N (from 1), which yields losses, and the held-out accuracy."""

    steps: int
    round: Callable[[int], Iterator[float]]
    accuracy: Callable[[], float]


def _training(baseline: Baseline) -> _Training:
    run, parts = baseline.run, _images(baseline)
    if baseline.kind == ALONE_EXIT:
        device = open_trainer(standalone_spec(run), baseline.cut, baseline.device, parts[0])
        return _Training(
            device.steps,
            lambda number: (device.loss for _ in device.round(number)),
            lambda: exit_accuracy(device),
        )
    held_out = parts[0].held_out  # the devices of one source hold out the same images
    whole = WholeTrainer(build_for(run), run, baseline.device, joined([part.train for part in parts]))
    return _Training(whole.steps, whole.round, lambda: evaluate(whole.network, held_out, run))


def _images(baseline: Baseline) -> list[DeviceData]:
    """The images of each shard."""
    run, data = baseline.run, baseline.data
    return [
        open_data(
            data.spec,
            input_shape=run.input_shape,
            fit=run.fit,
            shard=Shard.parse(shard),
            seed=run.seed,
            limit=data.limit,
        )
        for shard in baseline.shards
    ]


def _train(baseline: Baseline, report: Callable[[Progress], None]) -> None:
    for progress in train(baseline):
        report(progress)
