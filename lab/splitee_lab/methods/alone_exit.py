"""Each client alone at its own cut: client network and exit, without a server."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from splitee_device.training.trainer import ClientTrainer
from splitee_lab.methods.experiment import Accuracy, Experiment, RoundResult


def alone_exit(experiment: Experiment) -> Iterator[RoundResult]:
    """What a device reaches at its cut by itself: the exits of a fleet that averages no client networks."""
    trainers = {
        name: ClientTrainer(
            experiment.build(),
            experiment.devices[name].cut,
            experiment.spec,
            name,
            experiment.devices[name].data,
        )
        for name in experiment.samples
    }
    macs = sum(experiment.macs(name, experiment.devices[name].cut, with_exit=True) for name in trainers)
    for number in range(1, experiment.spec.rounds + 1):
        for trainer in trainers.values():
            for _ in trainer.round(number):
                experiment.on_batch()
        found = {}
        if experiment.is_evaluated(number):
            found = {name: Accuracy(exit_accuracy=_accuracy(trainer)) for name, trainer in trainers.items()}
        yield RoundResult(number, found, 0, macs)


def _accuracy(trainer: ClientTrainer) -> float:
    batches = list(trainer.evaluate())
    right = sum(int(np.sum(batch.exit_labels == batch.labels)) for batch in batches)
    return right / sum(len(batch.labels) for batch in batches)
