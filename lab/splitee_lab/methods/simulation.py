"""A fleet in one process without a broker: the fleet's own trainer and strategies, batch for batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from splitee.networks.split import SplitNetwork, build_for
from splitee.protocol.accuracies import Accuracies
from splitee.protocol.codecs import decode_tensor, encode_tensor
from splitee.protocol.cut_batch import CutBatch
from splitee.protocol.labels import encode_labels
from splitee.protocol.run_spec import RunSpec
from splitee.training.batchnorm_statistics import statistics_steps
from splitee.training.state import fleet_digest
from splitee.training.tensors import tensor_of
from splitee_device.data.images import DeviceData
from splitee_device.training.trainer import ClientTrainer
from splitee_lab.methods.hostile import HOSTILE
from splitee_server.learning.averages import size_of
from splitee_server.learning.fleet_model import Contribution, FleetModel
from splitee_server.learning.initial.weights import InitialWeights
from splitee_server.rounds.batch_order import BatchOrder
from splitee_server.rounds.evaluation import Score


@dataclass(frozen=True)
class SimulatedDevice:
    """One client of a simulation. `hostile`: how it harms the others, by its name in HOSTILE; empty: not."""

    cut: int
    data: DeviceData
    hostile: str = ""


@dataclass(frozen=True)
class SimulatedRound:
    """What a round came to.

    `accuracies`: of the honest devices, if the round was evaluated.
    """

    round: int
    trunk_loss: dict[str, float]
    exit_loss: dict[str, float]
    accuracies: dict[str, Accuracies]
    bytes: int  # that all devices have sent and received in it


@dataclass
class Simulation:
    """One run; `rounds` trains it, `digest` is what the fleet's report calls weights_sha256."""

    spec: RunSpec
    devices: Mapping[str, SimulatedDevice]
    evaluate_every: int = 1  # rounds; the last one is always evaluated
    on_batch: Callable[[], None] = lambda: None
    place: str = "cpu"  # of torch: where all networks are, as if each had a machine of its own
    moves: Mapping[int, Mapping[str, int]] = field(default_factory=dict)  # new cuts, by round and device
    initial: InitialWeights | None = None  # that the run begins from; None: the seed's
    _model: FleetModel = field(init=False)
    _trainers: dict[str, ClientTrainer] = field(init=False)

    def __post_init__(self) -> None:
        network = build_at(self.spec, self.place, self.initial)
        self._model = FleetModel(self.spec, network, self.initial)
        self._trainers = {}
        for name, device in sorted(self.devices.items()):
            self._trainers[name] = self._trainer(name, device.cut)
            self._model.join(name, device.cut, len(device.data.train))
            if self.initial is not None:
                self._trainers[name].adopt(self._model.first_client(name))

    def rounds(self) -> Iterator[SimulatedRound]:
        """Train, commit and evaluate round after round."""
        for number in range(1, self.spec.rounds + 1):
            trunk_loss, sent = self._train(number)
            exit_loss = {name: trainer.loss for name, trainer in self._trainers.items()}
            sent += self._commit(number)
            if self.spec.takes_statistics:
                sent += self._take_statistics(number)
            yield SimulatedRound(
                number,
                trunk_loss,
                exit_loss,
                {name: self._score(name) for name in self._honest()} if self._is_evaluated(number) else {},
                sent,
            )

    def digest(self) -> str:
        """SHA-256 over all trunk and client weights."""
        clients = {name: trainer.digest() for name, trainer in self._trainers.items()}
        return fleet_digest(self._model.trunk_weights(), clients)

    def _trainer(self, name: str, cut: int) -> ClientTrainer:
        device = self.devices[name]
        kind = HOSTILE[device.hostile] if device.hostile else ClientTrainer
        return kind(build_at(self.spec, self.place), cut, self.spec, name, device.data)

    def _honest(self) -> list[str]:
        return [name for name in self._trainers if not self.devices[name].hostile]

    def _commit(self, number: int) -> int:
        """Devices start from what the commit holds for them. Returns the bytes of weights on their way."""
        moves = self.moves.get(number, {})
        contributions = {
            name: Contribution(
                copies_of(trainer.weights())
                if self.spec.client_averaging != "none" or name in moves
                else None,
                moves.get(name, 0),
            )
            for name, trainer in self._trainers.items()
        }
        sent = sum(
            size_of(self._trainers[name].trained_weights())
            for name, given in contributions.items()
            if given.weights is not None
        )
        moved = self._model.commit(number, contributions)
        for name, cut in moved.items():
            self._trainers[name] = self._trainer(name, cut)
        for name, trainer in self._trainers.items():
            if self._model.holds(name):
                trainer.adopt(self._model.client(name))
                sent += size_of(trainer.trained_weights())
        return sent

    def _take_statistics(self, number: int) -> int:
        """What is committed gets BatchNorm statistics of its own. Returns the bytes on their way."""
        sent, received = 0, {}
        for name, trainer in self._trainers.items():
            steps = statistics_steps(self.spec, trainer.samples)
            for step, batch in enumerate(trainer.statistics(number, steps)):
                features, size = across_the_wire(self.spec.codec, batch.features)
                self._model.observe(name, features.to(self.place), round_number=number, step=step)
                sent += size + len(encode_labels(batch.labels, self.spec.num_classes))
            received[name] = trainer.fresh_statistics()
            sent += 2 * size_of(received[name])
        self._model.refresh(received)
        for name, trainer in self._trainers.items():
            trainer.adopt(self._model.client(name))
        return sent

    def _is_evaluated(self, number: int) -> bool:
        return number % self.evaluate_every == 0 or number == self.spec.rounds

    def _train(self, number: int) -> tuple[dict[str, float], int]:
        """One round. Mean trunk loss by device, and the bytes of batches and soft labels on their way."""
        steps = {name: trainer.steps for name, trainer in self._trainers.items()}
        soft_labels = {name: self._model.soft_labels(name) for name in steps}
        sent = sum(labels.probabilities.nbytes for labels in soft_labels.values() if labels is not None)
        losses = dict.fromkeys(steps, 0.0)
        batches = {
            name: enumerate(trainer.round(number, soft_labels[name]))
            for name, trainer in self._trainers.items()
        }
        for device, step, batch in self._in_order(batches, steps):
            features, size = across_the_wire(self.spec.codec, batch.features)
            losses[device] += self._model.train(
                device,
                features.to(self.place),
                torch.from_numpy(batch.labels).to(self.place),
                round_number=number,
                step=step,
                steps=steps[device],
            )
            sent += size + len(encode_labels(batch.labels, self.spec.num_classes))
            self.on_batch()
        return {name: losses[name] / steps[name] for name in steps}, sent

    def _in_order(
        self, batches: Mapping[str, Iterator[tuple[int, CutBatch]]], steps: Mapping[str, int]
    ) -> Iterator[tuple[str, int, CutBatch]]:
        """Devices' batches as the strategy's order asks for them; a batch is trained when its turn comes."""
        order = self._model.order
        schedule: BatchOrder[CutBatch] = BatchOrder("step" if order == "any" else order, steps, window=1)
        while missing := schedule.missing():
            for name in missing[:1] if order == "device" else steps:
                following = next(batches[name], None)
                if following is not None:
                    schedule.offer(name, *following)
                while (taken := schedule.take()) is not None:
                    yield taken
        for rest in batches.values():
            next(rest, None)  # let the trainer end its round

    def _score(self, name: str) -> Accuracies:
        def predict(features: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
            received, _ = across_the_wire(self.spec.codec, features)
            return self._model.predict(name, received.to(self.place)).cpu().numpy()

        return score(self._trainers[name].evaluate(), predict, self.spec.threshold).accuracies()


def score(
    batches: Iterable[CutBatch],
    predict: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.int64]],
    threshold: float,
) -> Score:
    """How good exit and trunk are on evaluated batches.

    Args:
        predict: the trunk's labels (B,) for features (B, *feature_shape).
        threshold: normalised entropy up to which the exit predicts.
    """
    found = Score()
    for batch in batches:
        assert batch.exit_labels is not None and batch.exit_entropy is not None
        entropy = batch.exit_entropy.astype(np.float16).astype(np.float32)  # as it travels
        found.add(batch.labels, batch.exit_labels, entropy, predict(batch.features), threshold)
    return found


def copies_of(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of their own, as they come over the wire: a commit averages them in place and keeps them."""
    return {name: tensor.clone() for name, tensor in weights.items()}


def build_at(spec: RunSpec, place: str, initial: InitialWeights | None = None) -> SplitNetwork:
    """The network of a run, its weights at `place`; `initial`: that it begins from, None: the seed's."""
    network = build_for(spec)
    if initial is not None:
        initial.load_into(network)
    if place == "cpu":
        return network
    network.module.to(place)
    network.module.to(memory_format=torch.channels_last)
    return network


def across_the_wire(codec: str, features: npt.NDArray[np.float32]) -> tuple[Tensor, int]:
    """Features as the server gets them, and the bytes that they take on the wire."""
    encoded = encode_tensor(codec, features)
    return tensor_of(decode_tensor(encoded)), len(encoded.data)
