# SPDX-License-Identifier: Apache-2.0
"""A fleet in one process without a broker: the fleet's own trainer and strategies, batch for batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from splitee.networks.split import SplitNetwork, build_for
from splitee.protocol.accuracies import Accuracies
from splitee.protocol.cut_batch import CutBatch
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.traffic import Traffic
from splitee.training.batchnorm_statistics import statistics_steps
from splitee.training.state import fleet_digest
from splitee.training.weights import check_messages
from splitee_device.data.images import DeviceData
from splitee_device.training.trainer import ClientTrainer
from splitee_lab.methods.hostile import HOSTILE
from splitee_lab.methods.wire import Wire
from splitee_server.learning.fleet_model import Contribution, FleetModel
from splitee_server.learning.initial.weights import InitialWeights
from splitee_server.learning.lanes import in_order
from splitee_server.rounds.batch_order import BatchOrder
from splitee_server.rounds.evaluation import Score
from splitee_server.rounds.sampling import picks


@dataclass(frozen=True)
class SimulatedDevice:
    """One client of a simulation. `hostile`: how it harms the others, by its name in HOSTILE; empty: not."""

    cut: int
    data: DeviceData
    hostile: str = ""


@dataclass(frozen=True)
class SimulatedRound:
    """The result of a round.

    `devices`: those that have taken part; losses are theirs. `accuracies`: of the honest devices, if the
    round was evaluated. `traffic`: of all devices, in messages as the fleet makes them, without
    acknowledgements and other small messages between device and server.
    """

    round: int
    devices: tuple[str, ...]
    trunk_loss: dict[str, float]
    exit_loss: dict[str, float]
    accuracies: dict[str, Accuracies]
    traffic: Traffic


@dataclass
class Simulation:
    """One run; `rounds` trains it, `digest` is what the fleet's report calls weights_sha256."""

    spec: RunSpec
    devices: Mapping[str, SimulatedDevice]
    evaluate_every: int = 1  # rounds; the last one is always evaluated
    on_batch: Callable[[], None] = lambda: None
    place: str = "cpu"  # torch's name of where all networks are, as if each had a machine of its own
    moves: Mapping[int, Mapping[str, int]] = field(default_factory=dict)  # new cuts, by round and device
    initial: InitialWeights | None = None  # of the run; None: from the seed
    resident: int = 0  # trunks in memory at a time, if each device has one; 0: all
    _model: FleetModel = field(init=False)
    _trainers: dict[str, ClientTrainer] = field(init=False)
    _wire: Wire = field(init=False)
    _behind: set[str] = field(init=False, default_factory=set)  # devices that do not have the last commit yet
    _participants: set[str] = field(init=False, default_factory=set)  # those that have taken part in a round

    def __post_init__(self) -> None:
        network = build_at(self.spec, self.place, self.initial)
        self._model = FleetModel(self.spec, network, self.initial)
        self._wire = Wire(self.spec)
        self._trainers = {}
        for name, device in sorted(self.devices.items()):
            self._trainers[name] = self._trainer(name, device.cut)
            self._model.join(name, device.cut, len(device.data.train))
            if self.initial is not None:
                self._trainers[name].adopt(self._model.initial_client(name))
            if self.spec.client_averaging != "none":
                check_messages(self._trainers[name].client.state_dict())

    def rounds(self) -> Iterator[SimulatedRound]:
        """Train, commit and evaluate round after round."""
        for number, picked in enumerate(picks(self.spec, self._trainers), start=1):
            self._participants.update(picked)
            trunk_loss = self._train(number, picked)
            exit_loss = {name: self._trainers[name].loss for name in picked}
            self._commit(number, picked)
            if self.spec.takes_statistics:
                self._take_statistics(number, picked)
            evaluated = self._honest() if self._is_evaluated(number) else []
            accuracies = {name: self._score(name, number) for name in evaluated}
            yield SimulatedRound(number, tuple(picked), trunk_loss, exit_loss, accuracies, self._wire.take())

    def digest(self) -> str:
        """SHA-256 over the weights of all trunks, and of all clients that are in a commit."""
        clients = {
            name: trainer.digest()
            for name, trainer in self._trainers.items()
            if name in self._participants or self._model.holds(name)
        }
        return fleet_digest(self._model.trunk_weights(), clients)

    def _trainer(self, name: str, cut: int) -> ClientTrainer:
        device = self.devices[name]
        kind = HOSTILE[device.hostile] if device.hostile else ClientTrainer
        return kind(build_at(self.spec, self.place), cut, self.spec, name, device.data)

    def _honest(self) -> list[str]:
        return [name for name in self._trainers if not self.devices[name].hostile]

    def _commit(self, number: int, picked: Sequence[str]) -> None:
        """Devices start from what the commit holds for them.

        Devices that were not picked get it at once, to be evaluated; its bytes count when they take part.
        """
        moves = self.moves.get(number, {})
        contributions = {
            name: Contribution(
                copies_of(trainer.weights())
                if self.spec.client_averaging != "none" or name in moves
                else None,
                moves.get(name, 0),
            )
            for name, trainer in ((name, self._trainers[name]) for name in picked)
        }
        for name, given in contributions.items():
            if given.weights is not None:
                self._wire.weights("up", number, self._trainers[name].trained_weights())
        moved = self._model.commit(number, contributions)
        for name, cut in moved.items():
            self._trainers[name] = self._trainer(name, cut)
        for name, trainer in self._trainers.items():
            if self._model.holds(name):
                trainer.adopt(self._model.client(name))
                if name in contributions:
                    self._wire.weights("down", number, trainer.trained_weights())
                else:
                    self._behind.add(name)

    def _take_statistics(self, number: int, picked: Sequence[str]) -> None:
        """Take BatchNorm's statistics of the committed networks."""
        received = {}
        for name in picked:
            trainer = self._trainers[name]
            steps = statistics_steps(self.spec, trainer.samples)
            for step, batch in enumerate(trainer.statistics(number, steps)):
                features = self._wire.batch(batch, "statistics", number, step)
                self._model.observe(name, features.to(self.place), round_number=number, step=step)
            received[name] = trainer.fresh_statistics()
            self._wire.weights("up", number, received[name], "statistics")
            self._wire.weights("down", number, received[name])
        self._model.refresh(received)
        for name, trainer in self._trainers.items():
            trainer.adopt(self._model.client(name))

    def _is_evaluated(self, number: int) -> bool:
        return number % self.evaluate_every == 0 or number == self.spec.rounds

    def _train(self, number: int, picked: Sequence[str]) -> dict[str, float]:
        """One round. Returns the mean trunk loss by device."""
        for name in self._behind.intersection(picked):
            self._wire.weights("down", number - 1, self._trainers[name].trained_weights())
        self._behind.difference_update(picked)
        steps = {name: self._trainers[name].steps for name in picked}
        soft_labels = {name: self._model.soft_labels(name) for name in steps}
        for labels in soft_labels.values():
            if labels is not None:
                self._wire.soft_labels(labels)
        losses = dict.fromkeys(steps, 0.0)
        batches = {name: enumerate(self._trainers[name].round(number, soft_labels[name])) for name in picked}
        turns = self._one_by_one(batches) if self.resident else self._in_order(batches, steps)
        for device, step, batch in turns:
            losses[device] += self._model.train(
                device,
                self._wire.batch(batch, "train", number, step).to(self.place),
                torch.from_numpy(batch.labels).to(self.place),
                round_number=number,
                step=step,
                steps=steps[device],
            )
            self.on_batch()
        return {name: losses[name] / steps[name] for name in steps}

    def _one_by_one(
        self, batches: Mapping[str, Iterator[tuple[int, CutBatch]]]
    ) -> Iterator[tuple[str, int, CutBatch]]:
        """All of a device's batches, after which its trunk is summed up and freed, then those of the next."""
        for name in in_order(batches):
            for step, batch in batches[name]:
                yield name, step, batch
            self._model.sum_up(name)

    def _in_order(
        self, batches: Mapping[str, Iterator[tuple[int, CutBatch]]], steps: Mapping[str, int]
    ) -> Iterator[tuple[str, int, CutBatch]]:
        """Devices' batches in the strategy's order; a batch is trained when its turn comes."""
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

    def _score(self, name: str, number: int) -> Accuracies:
        steps = count()

        def predict(batch: CutBatch) -> npt.NDArray[np.int64]:
            received = self._wire.batch(batch, "evaluate", number, next(steps))
            return self._model.predict(name, received.to(self.place)).cpu().numpy()

        return score(self._trainers[name].evaluate(), predict, self.spec.threshold).accuracies()


def score(
    batches: Iterable[CutBatch],
    predict: Callable[[CutBatch], npt.NDArray[np.int64]],
    threshold: float,
) -> Score:
    """The predictions of exit and trunk on evaluated batches.

    Args:
        predict: the trunk's labels (B,) for a batch.
        threshold: normalised entropy up to which the exit predicts.
    """
    found = Score()
    for batch in batches:
        assert batch.exit_labels is not None and batch.exit_entropy is not None
        entropy = batch.exit_entropy.astype(np.float16).astype(np.float32)  # as it is sent
        found.add(batch.labels, batch.exit_labels, entropy, predict(batch), threshold)
    return found


def copies_of(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors, as they come over the wire: a commit averages them in place and keeps them."""
    return {name: tensor.clone() for name, tensor in weights.items()}


def build_at(spec: RunSpec, place: str, initial: InitialWeights | None = None) -> SplitNetwork:
    """The network of a run, its weights at `place`; `initial`: its initial ones, None: from the seed."""
    network = build_for(spec)
    if initial is not None:
        initial.load_into(network)
    if place == "cpu":
        return network
    network.module.to(place)
    network.module.to(memory_format=torch.channels_last)
    return network
