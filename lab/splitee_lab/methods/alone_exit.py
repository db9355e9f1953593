# SPDX-License-Identifier: Apache-2.0
"""Each client alone at its own cut: client network and exit, without a server."""

from __future__ import annotations

from collections.abc import Iterator

from splitee.protocol.traffic import Traffic
from splitee_device.training.baseline import exit_accuracy, standalone_spec
from splitee_device.training.trainer import ClientTrainer
from splitee_lab.methods.experiment import Accuracy, Experiment, RoundResult


def alone_exit(experiment: Experiment) -> Iterator[RoundResult]:
    """What a device reaches alone at its cut: the exits of a fleet that averages no client networks."""
    run, cuts = (
        standalone_spec(experiment.spec),
        {name: experiment.devices[name].cut for name in experiment.samples},
    )
    trainers = {
        name: ClientTrainer(experiment.build(), cut, run, name, experiment.devices[name].data)
        for name, cut in cuts.items()
    }
    macs = sum(experiment.macs(name, cut, [cut]) for name, cut in cuts.items())
    for number in range(1, experiment.spec.rounds + 1):
        for trainer in trainers.values():
            for _ in trainer.round(number):
                experiment.on_batch()
        found = {}
        if experiment.is_evaluated(number):
            found = {
                name: Accuracy(exit_accuracy=exit_accuracy(trainer)) for name, trainer in trainers.items()
            }
        yield RoundResult.of(number, found, Traffic(), macs)
