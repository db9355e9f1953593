# SPDX-License-Identifier: Apache-2.0
"""CSE-FSL (Mu & Shen 2023, arXiv 2302.05599): local losses at the clients, one trunk, no gradient returns.

As in the paper: a client trains its network and an auxiliary one by the auxiliary's loss, and sends features
and labels of every H-th batch; the only model at the server learns from them one after the other; after each
round client and auxiliary networks are averaged by samples and go back to the clients.

Not as in the paper: the auxiliary network is our exit, a linear layer on the means of quarters of the map (in
the authors' code a linear layer on all features); every client takes part in every round; batches train the
trunk in the run's order, not as they happen to arrive; optimizer, schedule and loss are the run's, which all
methods share. All clients have one cut, the middle one of the experiment's. With H = 1 this is the fleet's
Sequential at equal cuts, with client networks that are averaged among them, and without its other settings.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from splitee_device.training.trainer import ClientTrainer
from splitee_lab.methods.experiment import SERVER, Accuracy, Experiment, RoundResult
from splitee_lab.methods.shared_trunk import SharedTrunk
from splitee_lab.methods.simulation import score
from splitee_lab.methods.turns import in_turn
from splitee_server.learning.averages import average, weigh

H = 1  # as by default in the authors' code; those of FSL-SAGE run it with 5


def cse_fsl(experiment: Experiment) -> Iterator[RoundResult]:
    """The mean is weighted by samples, BatchNorm's statistics included; momentum starts anew each round."""
    trunk = SharedTrunk(experiment)
    clients = {
        name: ClientTrainer(experiment.build(), trunk.cut, trunk.spec, name, experiment.devices[name].data)
        for name in experiment.samples
    }
    macs = sum(experiment.macs(name, trunk.cut, [trunk.cut]) for name in clients)
    for number in range(1, experiment.spec.rounds + 1):
        rounds = [_round(experiment, name, client, trunk, number) for name, client in clients.items()]
        for _ in in_turn(rounds, experiment.spec.order):
            experiment.on_batch()
        weights = {name: client.trained_weights() for name, client in clients.items()}
        average(weights, weigh(experiment.samples, experiment.spec.weighting))
        for of_client in weights.values():
            trunk.wire.weights("up", number, of_client)
            trunk.wire.weights("down", number, of_client)
        for client in clients.values():
            client.forget_momentum()
        found = {}
        if experiment.is_evaluated(number):
            any_client = next(iter(clients.values()))
            shares = score(any_client.evaluate(), trunk.predict_batch, experiment.spec.threshold)
            found[SERVER] = Accuracy.of(shares.accuracies())
        yield RoundResult.of(number, found, trunk.wire.take(), macs)


def _round(
    experiment: Experiment, name: str, client: ClientTrainer, trunk: SharedTrunk, number: int
) -> Iterator[None]:
    """Train a client's round, batch by batch."""
    for step, batch in enumerate(client.round(number)):
        if is_sent(step):
            features = trunk.receive(batch, number, step)
            labels = torch.from_numpy(batch.labels).to(experiment.place)
            trunk.train(name, features, labels, number, step)
        yield


def is_sent(step: int) -> bool:
    """Whether the server gets batch `step` (from 0) of a client's round: the last of each H."""
    return (step + 1) % H == 0
