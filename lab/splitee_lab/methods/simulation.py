"""A fleet in one process without a broker: the fleet's own trainer and strategies, batch for batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from splitee.networks.split import SplitNetwork, build_for
from splitee.protocol.codecs import decode_tensor, encode_tensor
from splitee.protocol.labels import encode_labels
from splitee.protocol.run_spec import RunSpec
from splitee.training.state import fleet_digest
from splitee_device.data.images import DeviceData
from splitee_device.training.trainer import ClientTrainer, CutBatch
from splitee_server.learning.averages import average_clients, size_of, weigh
from splitee_server.learning.client_networks import ClientNetworks
from splitee_server.learning.soft_labels import SoftLabelStore
from splitee_server.learning.strategies.base import Strategy, make_strategy
from splitee_server.rounds.batch_order import BatchOrder
from splitee_server.rounds.evaluation import Score


@dataclass(frozen=True)
class SimulatedDevice:
    """One client of a simulation."""

    cut: int
    data: DeviceData


@dataclass(frozen=True)
class SimulatedRound:
    """What a round came to; accuracies by device, as `Score.accuracies` names them, if it was evaluated."""

    round: int
    trunk_loss: dict[str, float]
    exit_loss: dict[str, float]
    accuracies: dict[str, dict[str, float]]
    bytes: int  # that all devices have sent and received in it


@dataclass
class Simulation:
    """One run; `rounds` trains it, `digest` is what the fleet's report calls weights_sha256."""

    spec: RunSpec
    devices: Mapping[str, SimulatedDevice]
    evaluate_every: int = 1  # rounds; the last one is always evaluated
    on_batch: Callable[[], None] = lambda: None
    place: str = "cpu"  # of torch: where all networks are, as if each had a machine of its own
    _cuts: dict[str, int] = field(init=False)
    _trainers: dict[str, ClientTrainer] = field(init=False)
    _strategy: Strategy = field(init=False)
    _soft_labels: SoftLabelStore = field(init=False)

    def __post_init__(self) -> None:
        self._cuts = {name: device.cut for name, device in self.devices.items()}
        self._strategy = make_strategy(build_at(self.spec, self.place), self.spec)
        self._soft_labels = SoftLabelStore(self.spec)
        self._trainers = {}
        for name, device in sorted(self.devices.items()):
            self._trainers[name] = ClientTrainer(
                build_at(self.spec, self.place), device.cut, self.spec, name, device.data
            )
            self._strategy.join(name, device.cut)
            self._soft_labels.count(name, len(device.data.train))

    def rounds(self) -> Iterator[SimulatedRound]:
        """Train and evaluate round after round."""
        samples = {name: len(device.data.train) for name, device in self.devices.items()}
        for number in range(1, self.spec.rounds + 1):
            losses, sent = self._train(number)
            self._soft_labels.end_round(number, self._trainers)
            self._strategy.aggregate(samples)
            sent += self._average_clients(self._cuts, samples)
            yield SimulatedRound(
                number,
                losses,
                {name: trainer.loss for name, trainer in self._trainers.items()},
                {name: self._score(name) for name in self._trainers} if self._is_evaluated(number) else {},
                sent,
            )

    def move(self, moves: Mapping[str, int]) -> None:
        """Cut devices elsewhere after a round, as a fleet's server does it at its commit."""
        clients = ClientNetworks(self.spec, build_at(self.spec, self.place), self._strategy)
        clients.load({name: trainer.weights() for name, trainer in self._trainers.items()})
        clients.move(moves, self._cuts)
        self._cuts.update(moves)
        for name, cut in moves.items():
            network, data = build_at(self.spec, self.place), self.devices[name].data
            self._trainers[name] = ClientTrainer(network, cut, self.spec, name, data)
            self._trainers[name].adopt(clients.state()[name])

    def digest(self) -> str:
        """SHA-256 over all trunk and client weights."""
        clients = {name: trainer.digest() for name, trainer in self._trainers.items()}
        return fleet_digest(self._strategy.weights(), clients)

    def _average_clients(self, cuts: Mapping[str, int], samples: Mapping[str, int]) -> int:
        """As the setting says; returns the bytes of the weights that devices send and get for it."""
        if self.spec.client_averaging == "none":
            return 0
        clients = {name: trainer.weights() for name, trainer in self._trainers.items()}
        weights = weigh(samples, self.spec.weighting)
        average_clients(self.spec.client_averaging, clients, self._strategy, cuts, weights)
        for trainer in self._trainers.values():
            trainer.forget_momentum()
        return sum(2 * size_of(weights) for weights in clients.values())

    def _is_evaluated(self, number: int) -> bool:
        return number % self.evaluate_every == 0 or number == self.spec.rounds

    def _train(self, number: int) -> tuple[dict[str, float], int]:
        """One round; batches reach the trunk in the strategy's order. Mean trunk loss by device, bytes."""
        steps = {name: trainer.steps for name, trainer in self._trainers.items()}
        order = self._strategy.order
        schedule: BatchOrder[CutBatch] = BatchOrder("step" if order == "any" else order, steps, window=1)
        batches, sums, sent = {}, dict.fromkeys(steps, 0.0), 0
        for name, trainer in self._trainers.items():
            soft_labels = self._soft_labels.of(name)
            sent += soft_labels.probabilities.nbytes if soft_labels else 0
            batches[name] = enumerate(trainer.round(number, soft_labels))
        while schedule.missing():
            for name in schedule.missing() if order == "device" else list(steps):
                self._offer(schedule, name, batches[name])
                while (taken := schedule.take()) is not None:
                    device, step, batch = taken
                    features, size = across_the_wire(self.spec.codec, batch.features)
                    loss, logits = self._strategy.train(
                        device,
                        features.to(self.place),
                        torch.from_numpy(batch.labels).to(self.place),
                        round_number=number,
                        step=step,
                        steps=steps[device],
                    )
                    sums[device] += loss
                    self._soft_labels.add(device, number, logits)
                    sent += size + len(encode_labels(batch.labels, self.spec.num_classes))
                    self.on_batch()
                if order == "device":
                    break
        for rest in batches.values():
            next(rest, None)  # let the trainer end its round
        return {name: sums[name] / steps[name] for name in steps}, sent

    def _offer(
        self, schedule: BatchOrder[CutBatch], name: str, batches: Iterator[tuple[int, CutBatch]]
    ) -> None:
        following = next(batches, None)
        if following is not None:
            schedule.offer(name, *following)

    def _score(self, name: str) -> dict[str, float]:
        score = Score()
        for batch in self._trainers[name].evaluate():
            features, _ = across_the_wire(self.spec.codec, batch.features)
            entropy = batch.exit_entropy.astype(np.float16).astype(np.float32)  # as it travels
            answers = self._strategy.predict(name, features.to(self.place)).cpu().numpy()
            score.add(batch.labels, batch.exit_labels, entropy, answers, self.spec.threshold)
        return score.accuracies()


def build_at(spec: RunSpec, place: str) -> SplitNetwork:
    """The network of a run, its weights at `place`."""
    network = build_for(spec)
    if place == "cpu":
        return network
    network.module.to(place)
    network.module.to(memory_format=torch.channels_last)
    return network


def across_the_wire(codec: str, features: npt.NDArray[np.float32]) -> tuple[Tensor, int]:
    """Features as the server gets them, and the bytes that they take on the wire."""
    encoded = encode_tensor(codec, features)
    array = decode_tensor(encoded)  # of fp32: a view of the message's bytes, which torch must not write
    return torch.from_numpy(array if array.flags.writeable else array.copy()), len(encoded.data)
