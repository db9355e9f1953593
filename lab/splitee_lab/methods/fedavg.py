# SPDX-License-Identifier: Apache-2.0
"""FedAvg: the whole network at every client, averaged each round (McMahan et al. 2017, arXiv 1602.05629)."""

from __future__ import annotations

from collections.abc import Iterator

from splitee.protocol.traffic import ByPurpose, Traffic
from splitee_lab.methods.baselines import evaluate
from splitee_lab.methods.experiment import SERVER, Accuracy, Experiment, RoundResult
from splitee_lab.methods.whole import train_round, whole_trainer
from splitee_server.learning.averages import average, size_of, weigh


def fedavg(experiment: Experiment) -> Iterator[RoundResult]:
    """The mean is weighted by samples, BatchNorm's statistics included; momentum starts anew each round.

    Every round each client gets the network and sends it back, as float32.
    """
    trainers = {
        name: whole_trainer(experiment, name, experiment.devices[name].data.train)
        for name in experiment.samples
    }
    macs = sum(experiment.macs(name, None) for name in trainers)
    for number in range(1, experiment.spec.rounds + 1):
        for trainer in trainers.values():
            trainer.forget_momentum()
            train_round(experiment, trainer, number)
        weights = {name: trainer.network.state_dict() for name, trainer in trainers.items()}
        average(weights, weigh(experiment.samples, experiment.spec.weighting))
        found = {}
        if experiment.is_evaluated(number):
            network = next(iter(trainers.values())).network
            found[SERVER] = Accuracy(evaluate(network, experiment.held_out, experiment.spec))
        size = ByPurpose(client_networks=sum(map(size_of, weights.values())))
        yield RoundResult.of(number, found, Traffic(up=size, down=size), macs)
