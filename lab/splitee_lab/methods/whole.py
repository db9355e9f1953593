# SPDX-License-Identifier: Apache-2.0
"""The whole network in one place, on all images; or at each client, on its own."""

from __future__ import annotations

from collections.abc import Iterator

from splitee.protocol.traffic import ByPurpose, Traffic
from splitee_device.data.image_sets import LabelledImages, joined
from splitee_lab.methods.baselines import CENTRALIZED, WholeTrainer, evaluate
from splitee_lab.methods.experiment import Accuracy, Experiment, RoundResult


def centralized(experiment: Experiment) -> Iterator[RoundResult]:
    """One network, all images: in a round as many steps as all clients make together.

    Devices compute nothing, and send their images once, as uint8.
    """
    train = joined([experiment.devices[name].data.train for name in experiment.samples])
    trainer = WholeTrainer(experiment.build(), experiment.centralized_spec, CENTRALIZED, train)
    for number in range(1, experiment.spec.rounds + 1):
        train_round(experiment, trainer, number)
        found = {}
        if experiment.is_evaluated(number):
            found[CENTRALIZED] = Accuracy(evaluate(trainer.network, experiment.held_out, experiment.spec))
        sent = ByPurpose(training=train.images.nbytes if number == 1 else 0)
        yield RoundResult.of(number, found, Traffic(up=sent), 0)


def alone(experiment: Experiment) -> Iterator[RoundResult]:
    """A network for each client, which sends nothing and trains on its own images only."""
    trainers = {
        name: whole_trainer(experiment, name, experiment.devices[name].data.train)
        for name in experiment.samples
    }
    macs = sum(experiment.macs(name, None) for name in trainers)
    for number in range(1, experiment.spec.rounds + 1):
        for trainer in trainers.values():
            train_round(experiment, trainer, number)
        found = {}
        if experiment.is_evaluated(number):
            for name, trainer in trainers.items():
                found[name] = Accuracy(evaluate(trainer.network, experiment.held_out, experiment.spec))
        yield RoundResult.of(number, found, Traffic(), macs)


def whole_trainer(experiment: Experiment, name: str, train: LabelledImages) -> WholeTrainer:
    return WholeTrainer(experiment.build(), experiment.spec, name, train)


def train_round(experiment: Experiment, trainer: WholeTrainer, number: int) -> None:
    for _ in trainer.round(number):
        experiment.on_batch()
