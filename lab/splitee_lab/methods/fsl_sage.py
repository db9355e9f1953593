# SPDX-License-Identifier: Apache-2.0
"""FSL-SAGE (Nair et al. 2025, arXiv 2505.23182): clients estimate the gradient that the trunk would return.

As in the paper, after its authors' code: each client has an auxiliary network of its own. The gradient of its
loss at the cut trains the client network, in place of the trunk's; the client does not train the auxiliary.
Features and labels of every H-th batch (as in CSE-FSL) train the only trunk, and the server keeps the latest
BUFFER samples of each client. Now and then it aligns each auxiliary network with the trunk, by the squared
error between the two gradients for these samples (Adam), and sends it down. After each round client networks
are averaged by samples; auxiliary networks are not.

Not as there: alignment comes at the end of round 1 and of every second one from there (theirs: in the first
batch of rounds 1, 11, 21, .. of 200), because runs here are short. It takes the samples in the batches in
which they came, with both networks in training mode, as in a client's training, for EPOCHS epochs (theirs:
all samples at once, 100 times). The BatchNorm statistics of both do not change; an auxiliary's follow its
client's batches. Optimizer, schedule and loss of clients and trunk are the run's, which all methods share. If
the run balances losses, the auxiliary's has the client's offsets, in alignment too, the trunk's in training
only. All clients have one cut, the middle one of the experiment's.

The auxiliary network is of the form of the trunk's first stage, and our exit behind it (theirs: a whole group
of residual blocks, pooled, and a linear layer). With AUXILIARY_STAGES = 0 it is the exit alone, whose
gradient is the same all over a quarter of the map: aligned with a trunk of the `small` protocol's network for
20 epochs at 1e-3, its cosine with the trunk's was 0.28, that of a stage and an exit 0.57.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import msgspec
import torch
from torch import Tensor, nn

from splitee.inference.uncertainty import normalized_entropy
from splitee.networks.frozen import set_training
from splitee.protocol.cut_batch import CutBatch
from splitee.training.objective import class_offsets
from splitee.training.placement import precision_at, seed_at
from splitee.training.seeds import seed_for
from splitee_lab.methods.alignment import Target, align, feature_gradients, with_fixed_buffers
from splitee_lab.methods.cse_fsl import is_sent
from splitee_lab.methods.experiment import SERVER, Accuracy, Experiment, RoundResult
from splitee_lab.methods.shared_trunk import SharedTrunk
from splitee_lab.methods.simulation import build_at, score
from splitee_lab.methods.split_client import SplitClient
from splitee_lab.methods.turns import in_turn
from splitee_server.learning.averages import average, weigh
from splitee_server.rounds.evaluation import Score

ALIGN_EVERY = 2  # rounds, the first included
BUFFER = 1000  # samples of a client that the server keeps at most
AUXILIARY_STAGES = 1  # before the auxiliary's exit; fewer where the network has no more
RATE = 5e-3  # of Adam; 1e-3 (theirs) gets less far in so few epochs
ESTIMATE_PASSES = 2  # of the auxiliary at a client: forward, and gradient to the features


def fsl_sage(experiment: Experiment) -> Iterator[RoundResult]:
    """The mean is weighted by samples, BatchNorm's statistics included; momentum starts anew each round.

    An alignment sends each client its auxiliary's parameters, as float32; the server computes it.
    Exit accuracies are those of the auxiliary networks, over all clients.
    """
    trunk = SharedTrunk(experiment)
    clients = {name: _Client(experiment, name, trunk) for name in experiment.samples}
    macs = sum(client.macs() for client in clients.values())
    for number in range(1, experiment.spec.rounds + 1):
        rounds = [client.round(number) for client in clients.values()]
        for _ in in_turn(rounds, experiment.spec.order):
            experiment.on_batch()
        weights = {name: client.network.trained_weights() for name, client in clients.items()}
        average(weights, weigh(experiment.samples, experiment.spec.weighting))
        for of_client in weights.values():
            trunk.wire.weights("up", number, of_client)
            trunk.wire.weights("down", number, of_client)
        for client in clients.values():
            client.network.forget_momentum()
            if (number - 1) % ALIGN_EVERY == 0:
                client.align(number)
        found = {}
        if experiment.is_evaluated(number):
            scores = [
                score(client.evaluate(), trunk.predict_batch, experiment.spec.threshold)
                for client in clients.values()
            ]
            found[SERVER] = Accuracy.of(Score.over(scores).accuracies())
        yield RoundResult.of(number, found, trunk.wire.take(), macs)


class _Client:
    """A client network, its auxiliary network, and what the server keeps to align that."""

    def __init__(self, experiment: Experiment, name: str, trunk: SharedTrunk) -> None:
        self.network = SplitClient(experiment, name, trunk.cut)
        self.auxiliary = auxiliary_network(experiment, trunk.cut)
        self._experiment = experiment
        self._name = name
        self._trunk = trunk
        self._place = torch.device(experiment.place)
        labels = experiment.devices[name].data.train.labels
        self._offsets = class_offsets(experiment.spec, labels).to(self._place)
        self._aligner = torch.optim.Adam(self.auxiliary.parameters(), lr=RATE)
        self._buffer: deque[tuple[Tensor, Tensor]] = deque()  # features and labels of a batch each

    def round(self, number: int) -> Iterator[None]:
        """Train round `number`, batch by batch."""
        self.auxiliary.train()
        for step, features, labels in self.network.round(number):
            gradients = feature_gradients(self.auxiliary, features, labels, self._offsets)
            if is_sent(step):
                batch = CutBatch(features.detach().cpu().numpy(), labels.cpu().numpy())
                received = self._trunk.receive(batch, number, step)
                self._trunk.train(self._name, received, labels, number, step)
                self._keep(received, labels)
            self.network.learn(features, gradients / len(labels))
            yield

    def _keep(self, features: Tensor, labels: Tensor) -> None:
        self._buffer.append((features, labels))
        while sum(len(labels) for _, labels in self._buffer) > BUFFER:
            self._buffer.popleft()

    def align(self, number: int) -> None:
        """Align the auxiliary with the trunk after round `number`, and send it to the client."""
        trunk = self._trunk.module
        set_training(trunk, self._experiment.network.frozen_modules)
        seed_at(self._place, seed_for(self._experiment.spec.seed, "alignment", self._name, number))

        def trunk_logits(features: Tensor) -> Tensor:
            with precision_at(self._place, self._experiment.spec.precision):
                return with_fixed_buffers(trunk)(features)

        targets = [
            Target(features, labels, feature_gradients(trunk_logits, features, labels))
            for features, labels in self._buffer
        ]
        align(self.auxiliary, self._aligner, targets, self._offsets)
        size = sum(parameter.nbytes for parameter in self.auxiliary.parameters())
        self._trunk.wire.bare("down", "client_networks", size)

    def evaluate(self) -> Iterator[CutBatch]:
        """The held-out images at the cut, with what the auxiliary predicts."""
        self.auxiliary.eval()
        for features, labels in self.network.held_out():
            with torch.inference_mode():
                logits = self.auxiliary(features)
            entropy = normalized_entropy(logits.cpu().numpy())
            predicted = logits.argmax(dim=1).cpu().numpy()
            yield CutBatch(features.cpu().numpy(), labels.numpy(), predicted, entropy)

    def macs(self) -> int:
        """Multiply-accumulates in one round."""
        stages = auxiliary_stages(self._experiment, self._trunk.cut)
        each = sum(self._experiment.network.stages[index - 1].macs for index in stages)
        each += self._experiment.network.exit_macs(stages.stop - 1)
        estimates = ESTIMATE_PASSES * each * self._experiment.trained(self._name)
        return self._experiment.macs(self._name, self._trunk.cut) + estimates


def auxiliary_network(experiment: Experiment, cut: int) -> nn.Module:
    """Features (B, *feature_shape) to logits (B, classes); all clients begin with the same weights."""
    spec = msgspec.structs.replace(experiment.spec, frozen=0)
    network = build_at(spec, experiment.place, experiment.initial)
    stages = auxiliary_stages(experiment, cut)
    last = stages.stop - 1
    head = network.exit_head(last, seed=seed_for(spec.seed, "exit", last)).to(experiment.place)
    return nn.Sequential(*(network.stage(index) for index in stages), head)


def auxiliary_stages(experiment: Experiment, cut: int) -> range:
    """The stages that an auxiliary network has before its exit; the last stage gives no features for one."""
    return range(cut + 1, min(cut + AUXILIARY_STAGES, experiment.network.num_layers - 1) + 1)
