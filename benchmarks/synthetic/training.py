# SPDX-License-Identifier: Apache-2.0
"""A synthetic device's substitutes for training and disk: random features, and states in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import repeat
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from splitee.networks.split import build_for
from splitee.protocol.cut_batch import EVALUATION_BATCH, CutBatch
from splitee.protocol.run_spec import RunSpec
from splitee.training.batchnorm_statistics import is_statistic
from splitee.training.epochs import evaluation_steps, steps_per_round
from splitee.training.state import weights_digest
from splitee.training.weights import client_model
from splitee_device.data.image_sets import ImageSet
from splitee_device.data.images import DeviceData
from splitee_device.training.mistakes import Mistakes

T = TypeVar("T")


@dataclass(frozen=True)
class CutData:
    """The batches and initial weights of all devices of one cut."""

    train: CutBatch
    evaluate: CutBatch
    weights: dict[str, Tensor]


@cache
def cut_data(spec: RunSpec, cut: int) -> CutData:
    """Rectified normal features (B, *feature shape at `cut`), random labels, and initial weights."""
    network = build_for(spec)
    generator = np.random.default_rng(cut)
    shape = network.stages[cut - 1].feature_shape

    def features(size: int) -> Any:
        return np.maximum(generator.standard_normal((size, *shape), dtype=np.float32), 0)

    def labels(size: int) -> Any:
        return generator.integers(0, spec.num_classes, size)

    entropy = np.full(EVALUATION_BATCH, 0.5, np.float32)
    predicted = labels(EVALUATION_BATCH)
    return CutData(
        CutBatch(features(spec.batch_size), labels(spec.batch_size)),
        CutBatch(features(EVALUATION_BATCH), predicted, predicted, entropy),
        {name: tensor.detach() for name, tensor in client_model(network, cut, spec).state_dict().items()},
    )


def images_of(train: int, held_out: int, classes: int) -> DeviceData:
    """Black images of 3 x 32 x 32, which share one byte of memory, with labels in turn."""

    def black_images(count: int) -> ImageSet:
        return ImageSet(
            np.broadcast_to(np.uint8(0), (count, 3, 32, 32)), np.arange(count, dtype=np.int64) % classes
        )

    names = tuple(f"class-{number}" for number in range(classes))
    return DeviceData(black_images(train), black_images(held_out), names, ())


class SyntheticTrainer:
    """A `ClientTrainer` for the agent whose training changes no weights and takes no time."""

    def __init__(
        self, spec: RunSpec, cut: int, data: DeviceData, before_step: Callable[[int, int, int], None]
    ) -> None:
        """`before_step`: called before each step of training with its round, number and number of steps."""
        self._data = cut_data(spec, cut)
        self._weights: Mapping[str, Tensor] = self._data.weights
        self._before_step = before_step
        self.samples, self.held_out = len(data.train), len(data.held_out)
        self._steps = steps_per_round(spec, self.samples)
        self.loss, self.accuracy, self.mistakes = 1.0, 0.5, Mistakes()

    def round(self, number: int, _soft_labels: object = None, steps: int | None = None) -> Iterator[CutBatch]:
        steps = self._steps if steps is None else steps
        for step in range(steps):
            self._before_step(number, step, steps)
            yield self._data.train

    def statistics(self, _number: int, steps: int) -> Iterator[CutBatch]:
        yield from repeat(self._data.train, steps)

    def fresh_statistics(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self._weights.items() if is_statistic(name)}

    def evaluate(self, steps: int | None = None) -> Iterator[CutBatch]:
        yield from repeat(self._data.evaluate, evaluation_steps(self.held_out) if steps is None else steps)

    def weights(self) -> Mapping[str, Tensor]:
        return self._weights

    trained_weights = weights

    def frozen_weights(self) -> dict[str, Tensor]:
        return {}

    def digest(self) -> str:
        return weights_digest(self._weights)

    def state(self) -> dict[str, Any]:
        return {"model": self._weights}

    def load(self, state: Mapping[str, Any]) -> None:
        self._weights = state["model"]

    def adopt(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights

    def forget_momentum(self) -> None:
        """It has no momentum."""


class SyntheticStore:
    """A `DeviceStore` in memory: it survives the device's simulated processes."""

    def __init__(self) -> None:
        self._rounds: dict[int, dict[str, Any]] = {}
        self.cuts: frozenset[int] = frozenset()

    def save(self, _spec: RunSpec, _cut: int, number: int, trainer: SyntheticTrainer) -> None:
        self._rounds[number] = trainer.state()

    def commit(self, number: int) -> None:
        self._rounds = {kept: state for kept, state in self._rounds.items() if kept >= number - 1}

    def holds(self, number: int, digest: str | None, trainer: SyntheticTrainer) -> bool:
        if number in self._rounds:
            trainer.load(self._rounds[number])
        return number in self._rounds and trainer.digest() == digest

    def restore(
        self,
        number: int,
        _digest: str | None,
        trainer: SyntheticTrainer,
        initial: Callable[[], Any],
        _tick: Callable[[], None],
    ) -> None:
        trainer.load(self._rounds[number] if number in self._rounds else initial())

    def trained_since(self, _number: int) -> int:
        """Its features are the same in all rounds."""
        return 0

    def finish(self, *_: object) -> None:
        """Nothing to do."""

    request_cut = save_mistakes = save_division = finish


class NoMonitor:
    """A round monitor that never requests another cut."""

    def steps(self, batches: Iterator[T]) -> Iterator[T]:
        return batches

    def end_round(self, _number: int, _cut: int) -> None:
        return None
