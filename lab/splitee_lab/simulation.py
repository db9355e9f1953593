"""A fleet in one process without a broker: the fleet's own trainer and strategies, batch for batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from splitee.codecs import decode_tensor, encode_tensor
from splitee.messages import RunSpec
from splitee.network import build_for
from splitee.training import fleet_digest
from splitee_device.data import DeviceData
from splitee_device.trainer import ClientTrainer, CutBatch
from splitee_server.evaluation import Score
from splitee_server.schedule import Schedule
from splitee_server.strategy import Strategy, make_strategy


@dataclass(frozen=True)
class SimulatedDevice:
    """One client of a simulation."""

    cut: int
    data: DeviceData


@dataclass(frozen=True)
class SimulatedRound:
    """What a round came to; accuracies by device, as `Score.accuracies` names them."""

    round: int
    trunk_loss: dict[str, float]
    exit_loss: dict[str, float]
    accuracies: dict[str, dict[str, float]]


@dataclass
class Simulation:
    """One run; `rounds` trains it, `digest` is what the fleet's report calls weights_sha256."""

    spec: RunSpec
    devices: Mapping[str, SimulatedDevice]
    _trainers: dict[str, ClientTrainer] = field(init=False)
    _strategy: Strategy = field(init=False)

    def __post_init__(self) -> None:
        self._strategy = make_strategy(build_for(self.spec), self.spec)
        self._trainers = {}
        for name, device in sorted(self.devices.items()):
            self._trainers[name] = ClientTrainer(
                build_for(self.spec), device.cut, self.spec, name, device.data
            )
            self._strategy.join(name, device.cut)

    def rounds(self) -> Iterator[SimulatedRound]:
        """Train and evaluate round after round."""
        for number in range(1, self.spec.rounds + 1):
            losses = self._train(number)
            self._strategy.aggregate({name: len(d.data.train) for name, d in self.devices.items()})
            yield SimulatedRound(
                number,
                losses,
                {name: trainer.loss for name, trainer in self._trainers.items()},
                {name: self._score(name) for name in self._trainers},
            )

    def digest(self) -> str:
        """SHA-256 over all trunk and client weights."""
        clients = {name: trainer.digest() for name, trainer in self._trainers.items()}
        return fleet_digest(self._strategy.weights(), clients)

    def _train(self, number: int) -> dict[str, float]:
        """One round; batches reach the trunk in the strategy's order. Mean trunk loss by device."""
        steps = {name: trainer.steps for name, trainer in self._trainers.items()}
        order = self._strategy.order
        schedule: Schedule[CutBatch] = Schedule("step" if order == "any" else order, steps, window=1)
        batches = {name: enumerate(trainer.round(number)) for name, trainer in self._trainers.items()}
        sums = dict.fromkeys(steps, 0.0)
        while schedule.missing():
            for name in schedule.missing() if order == "device" else list(steps):
                self._offer(schedule, name, batches[name])
                while (taken := schedule.take()) is not None:
                    device, step, batch = taken
                    sums[device] += self._strategy.train(
                        device,
                        torch.from_numpy(self._across_the_wire(batch.features)),
                        torch.from_numpy(batch.labels),
                        round_number=number,
                        step=step,
                        steps=steps[device],
                    )
                if order == "device":
                    break
        for rest in batches.values():
            next(rest, None)  # let the trainer end its round
        return {name: sums[name] / steps[name] for name in steps}

    def _offer(
        self, schedule: Schedule[CutBatch], name: str, batches: Iterator[tuple[int, CutBatch]]
    ) -> None:
        following = next(batches, None)
        if following is not None:
            schedule.offer(name, *following)

    def _score(self, name: str) -> dict[str, float]:
        score = Score()
        for batch in self._trainers[name].evaluate():
            features = torch.from_numpy(self._across_the_wire(batch.features))
            entropy = batch.exit_entropy.astype(np.float16).astype(np.float32)  # as it travels
            answers = self._strategy.predict(name, features).numpy()
            score.add(batch.labels, batch.exit_labels, entropy, answers, self.spec.threshold)
        return score.accuracies()

    def _across_the_wire(self, features: np.ndarray) -> np.ndarray:
        return decode_tensor(encode_tensor(self.spec.codec, features))
