# SPDX-License-Identifier: Apache-2.0
"""SplitFed with one trunk (Thapa et al. 2022, arXiv 2004.12088, version 2): gradients return to the clients.

All clients have one cut, the middle one of the experiment's. The trunk is trained as Sequential trains its
own, one batch of each client in turn; the gradient at the cut goes back as float32, and after each round the
client networks are averaged by samples.
"""

from __future__ import annotations

from collections.abc import Iterator

from splitee.protocol.cut_batch import CutBatch
from splitee_lab.methods.experiment import SERVER, Accuracy, Experiment, RoundResult
from splitee_lab.methods.shared_trunk import SharedTrunk
from splitee_lab.methods.split_client import SplitClient
from splitee_lab.methods.turns import in_turn
from splitee_server.learning.averages import average, size_of, weigh


def splitfed(experiment: Experiment) -> Iterator[RoundResult]:
    """The counterpart of the fleet's method: the device waits for the server's gradient in every batch."""
    trunk = SharedTrunk(experiment)
    clients = {name: SplitClient(experiment, name, trunk.cut) for name in experiment.samples}
    macs = sum(experiment.macs(name, trunk.cut) for name in clients)
    for number in range(1, experiment.spec.rounds + 1):
        for _ in in_turn(_round(name, client, trunk, number) for name, client in clients.items()):
            experiment.on_batch()
        weights = {name: client.network.state_dict() for name, client in clients.items()}
        average(weights, weigh(experiment.samples, experiment.spec.weighting))
        size = sum(map(size_of, weights.values()))
        trunk.wire.bare("up", "client_networks", size)
        trunk.wire.bare("down", "client_networks", size)
        found = {}
        if experiment.is_evaluated(number):
            found[SERVER] = Accuracy(_accuracy(next(iter(clients.values())), trunk))
        yield RoundResult.of(number, found, trunk.wire.take(), macs)


def _round(name: str, client: SplitClient, trunk: SharedTrunk, number: int) -> Iterator[None]:
    """Train a client's round, batch by batch."""
    for step, features, labels in client.round(number):
        batch = CutBatch(features.detach().cpu().numpy(), labels.cpu().numpy())
        received = trunk.receive(batch, number, step)
        received.requires_grad_()
        trunk.train(name, received, labels, number, step)
        client.learn(features, received.grad)
        trunk.wire.bare("down", "training", received.nbytes)  # the gradient
        yield


def _accuracy(client: SplitClient, trunk: SharedTrunk) -> float:
    """The accuracy of client network and trunk together, on the held-out images."""
    right = images = 0
    for features, labels in client.held_out():
        right += int((trunk.predict(features.cpu().numpy()) == labels.numpy()).sum())
        images += len(labels)
    return right / images
