"""SplitFed with one trunk (Thapa et al. 2022, arXiv 2004.12088, version 2): gradients return to the clients.

All clients have one cut, the middle one of the experiment's. The trunk is trained as Sequential trains its
own, one batch of each client in turn; the gradient at the cut goes back as float32, and after each round the
client networks are averaged by samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median_low

import torch
from torch import Tensor, nn

from splitee.networks.frozen import set_training
from splitee.protocol.labels import encode_labels
from splitee.training.augmentation import augment
from splitee.training.epochs import epoch_batches
from splitee.training.learning_rate import learning_rate, set_rate
from splitee.training.optimizer import make_optimizer
from splitee.training.placement import precision_at, seed_at
from splitee.training.seeds import seed_for
from splitee_device.data.batches import batches_at
from splitee_lab.methods.baselines import held_out_batches
from splitee_lab.methods.experiment import SERVER, Accuracy, Experiment, RoundResult
from splitee_lab.methods.simulation import across_the_wire
from splitee_server.learning.averages import average, size_of, weigh
from splitee_server.learning.strategies.sequential import Sequential


def splitfed(experiment: Experiment) -> Iterator[RoundResult]:
    """The counterpart of the fleet's method: the device waits for the server's gradient in every batch."""
    cut = median_low(device.cut for device in experiment.devices.values())
    server = Sequential(experiment.build(), experiment.spec)
    clients = {name: _Client(experiment, name, cut, server) for name in experiment.samples}
    macs = sum(experiment.macs(name, cut) for name in clients)
    for number in range(1, experiment.spec.rounds + 1):
        under_way = [client.round(number) for client in clients.values()]
        sent = 0
        while under_way:
            sizes = [next(steps, None) for steps in under_way]
            under_way = [steps for steps, size in zip(under_way, sizes, strict=True) if size is not None]
            sent += sum(size for size in sizes if size is not None)
        weights = {name: client.network.state_dict() for name, client in clients.items()}
        average(weights, weigh(experiment.samples, experiment.spec.weighting))
        sent += sum(2 * size_of(of_client) for of_client in weights.values())
        found = {}
        if experiment.is_evaluated(number):
            found[SERVER] = Accuracy(next(iter(clients.values())).accuracy())
        yield RoundResult(number, found, sent, macs)


class _Client:
    """Stages 1..cut, trained by the gradient that the server returns."""

    def __init__(self, experiment: Experiment, name: str, cut: int, server: Sequential) -> None:
        self.network: nn.Module = experiment.build().client(cut)
        self._experiment = experiment
        self._spec = experiment.spec
        self._name = name
        self._place = torch.device(experiment.place)
        self._batches = batches_at(self._place, experiment.devices[name].data.train, experiment.spec)
        self._server = server
        self._frozen = experiment.network.frozen_modules
        trained = [one for one in self.network.parameters() if one.requires_grad]
        self._optimizer = make_optimizer(trained, self._spec) if trained else None
        server.join(name, cut)

    def round(self, number: int) -> Iterator[int]:
        """Trains round `number`, yielding the bytes of each batch."""
        spec, samples = self._spec, self._experiment.samples[self._name]
        steps = self._experiment.batches(samples)
        set_training(self.network, self._frozen)
        order = epoch_batches(spec, self._name, number, samples)
        for step, batch in enumerate(self._batches(order)):
            labels = batch.labels
            seed_at(self._place, seed_for(spec.seed, self._name, number, step))
            if self._optimizer is not None:
                set_rate(self._optimizer, learning_rate(spec, number, step, steps))
            with precision_at(self._place):
                features = self.network(augment(batch.images, spec)).float()  # (B, *feature_shape)
            at_server, size = self._send(features)
            at_server.requires_grad_()
            self._server.train(self._name, at_server, labels, round_number=number, step=step, steps=steps)
            if self._optimizer is not None:
                self._optimizer.zero_grad(set_to_none=True)
                features.backward(at_server.grad)
                self._optimizer.step()
            self._experiment.on_batch()
            yield size + at_server.nbytes + len(encode_labels(labels.cpu().numpy(), spec.num_classes))

    def accuracy(self) -> float:
        """Of client network and trunk together, on the held-out pictures."""
        self.network.eval()
        right = 0
        for images, labels in held_out_batches(self._experiment.held_out, self._spec):
            with torch.inference_mode(), precision_at(self._place):
                features, _ = self._send(self.network(images.to(self._place)).float())
                right += int((self._server.predict(self._name, features).cpu() == labels).sum())
        return right / len(self._experiment.held_out)

    def _send(self, features: Tensor) -> tuple[Tensor, int]:
        """Features as the server gets them, and their bytes."""
        received, size = across_the_wire(self._spec.codec, features.detach().cpu().numpy())
        return received.to(self._place), size
