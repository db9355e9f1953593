# SPDX-License-Identifier: Apache-2.0
"""The device's share of the training: stages 1..cut through the early exit. Knows tensors, not MQTT."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import cycle, islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from splitee.errors import NetworkError
from splitee.inference.uncertainty import normalized_entropy
from splitee.networks.frozen import set_training
from splitee.networks.split import SplitNetwork, build_for
from splitee.protocol.cut_batch import EVALUATION_BATCH, CutBatch, oversized
from splitee.protocol.fields import Precision
from splitee.protocol.run_spec import RunSpec
from splitee.training.augmentation import augment
from splitee.training.batchnorm_statistics import STATISTICS_PASSES, FreshStatistics, is_statistic
from splitee.training.epochs import epoch_batches, evaluation_steps, steps_per_round
from splitee.training.learning_rate import learning_rate, set_rate
from splitee.training.objective import class_offsets
from splitee.training.optimizer import make_optimizer
from splitee.training.placement import lay_out, precision_at, seed_at
from splitee.training.seeds import seed_for
from splitee.training.soft_labels import SoftLabels
from splitee.training.state import weights_digest
from splitee.training.weights import CLIENT, client_model, exit_cuts
from splitee_device.data.batches import Batch, Batches, batches_at
from splitee_device.data.image_sets import LabelledImages
from splitee_device.data.images import DeviceData
from splitee_device.training.distillation import Teacher
from splitee_device.training.exits import exits_loss
from splitee_device.training.feature_cache import CacheRoom
from splitee_device.training.frozen_features import FrozenFeatures
from splitee_device.training.mistakes import Mistakes


def open_trainer(
    spec: RunSpec, cut: int, device: str, data: DeviceData, cache: CacheRoom | None = None
) -> ClientTrainer:
    """The trainer of a device in a run. It keeps only its part of the network that is built for it.

    Args:
        cache: where it may keep features of frozen stages.

    Raises:
        NetworkError: there is no such cut, or the features of a batch at it do not fit a message.
    """
    network = build_for(spec)
    network.check_cut(cut)
    if obstacle := oversized(spec, network.stages[cut - 1].feature_shape):
        raise NetworkError(f"cut {cut}: {obstacle}: a later cut or a smaller --input helps, or --batch-size")
    trainer = ClientTrainer(network, cut, spec, device, data)
    del network
    trainer.features.cache_in(cache)
    gc.collect()  # the trunk's weights are in reference cycles, and a small device needs their memory
    return trainer


class ClientTrainer:
    """One client network and its exits, their optimizer, and the results of a round.

    It computes on the torch device of the network's weights.

    Attributes:
        client: stages 1..cut.
        exit: the device's own exit, which makes its predictions.
        body: what a training step runs before the exits: `client`, or, if the run also has exits at
            shallower cuts, the same stages with the features at each of these cuts.
    """

    def __init__(self, network: SplitNetwork, cut: int, spec: RunSpec, device: str, data: DeviceData) -> None:
        network.check_cut(cut)
        self._spec = spec
        self._device = device
        self._data = data
        self._place = next(network.module.parameters()).device
        lay_out(network.module, spec.precision)
        self._model = client_model(network, cut, spec).to(self._place)
        self._frozen = network.frozen_modules
        self._frozen_keys = {f"{CLIENT}{key}" for key in network.frozen_keys}
        self.client, self.exit = self._model["client"], self._model["exit"]
        cuts = exit_cuts(spec, cut)
        self.body = network.client_to(cuts) if len(cuts) > 1 else self.client
        shallower = self._model["exits"].children() if "exits" in self._model else ()
        self._exits = [*shallower, self.exit]  # in the order of their cuts
        self.optimizer = make_optimizer(self._model.parameters(), spec)
        self._offsets = class_offsets(spec, data.train.labels).to(self._place)
        self.features = FrozenFeatures(self.client, network.stages[cut - 1].feature_shape, spec)
        self._is_frozen = network.frozen >= cut  # then an image always gives the same features
        self._train_batches = self._batches_of(data.train, self._is_frozen and spec.augmentation == "none")
        self._held_out_batches = self._batches_of(data.held_out, self._is_frozen)
        self.samples = len(data.train)
        self.steps = steps_per_round(spec, self.samples)
        self.held_out = len(data.held_out)
        self._evaluation_steps = evaluation_steps(self.held_out)
        self.loss = 0.0  # mean exit loss on the labels, of the round so far
        self.accuracy = 0.0  # share of the round's training samples that the exit got right
        self.mistakes = Mistakes()  # of the exit, in the evaluation under way or the last one
        self._fresh = FreshStatistics(self._model)

    def round(
        self, number: int, soft_labels: SoftLabels | None = None, steps: int | None = None
    ) -> Iterator[CutBatch]:
        """Train round `number` (from 1), yielding each batch's features as it goes.

        Args:
            soft_labels: of an earlier round; the exit learns from them and from the labels.
            steps: the number of batches, if these images make another number.
        """
        for head in self._exits:
            head.train()
        set_training(self.body, self._frozen)
        steps = self.steps if steps is None else steps
        teacher = Teacher(self._spec, self._device, self.samples, soft_labels)
        losses, correct, seen = 0.0, 0, 0
        order = epoch_batches(self._spec, self._device, number, self.samples, steps)
        for step, batch in enumerate(self._train_batches(order)):
            labels = batch.labels
            seed_at(self._place, seed_for(self._spec.seed, self._device, number, step))
            set_rate(self.optimizer, learning_rate(self._spec, number, step, steps))
            found = self._train_features(batch, self._spec.precision)
            scores = [head(one) for head, one in zip(self._exits, found, strict=True)]
            loss, own_loss = exits_loss(scores, labels, self._offsets)
            features, logits = found[-1], scores[-1]  # (B, *feature_shape), (B, num_classes)
            self.optimizer.zero_grad(set_to_none=True)
            (loss + teacher.loss(batch.numbers, logits)).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            losses += own_loss.item()
            correct += int((logits.detach().argmax(dim=1) == labels).sum())
            seen += len(labels)
            self.loss, self.accuracy = losses / (step + 1), correct / seen
            yield CutBatch(_array(features.detach()), _array(labels))

    @torch.no_grad()
    def statistics(self, number: int, steps: int) -> Iterator[CutBatch]:
        """Training batches through the network of committed round `number`, which is not changed.

        Afterwards `fresh_statistics` gives what its BatchNorm layers saw. Exits have few values per image for
        their statistics. Therefore it runs more than the `steps` batches that are yielded and sent.
        """
        for head in self._exits:
            head.train()
        set_training(self.body, self._frozen)
        self._fresh = FreshStatistics(self._model)
        order = epoch_batches(self._spec, self._device, number, self.samples, STATISTICS_PASSES * steps)
        for step, batch in enumerate(self._train_batches(order)):
            seed_at(self._place, seed_for(self._spec.seed, self._device, number, step))
            with self._fresh.batch():
                found = self._train_features(batch)
                for head, one in zip(self._exits, found, strict=True):
                    head(one)
            if step < steps:
                yield CutBatch(_array(found[-1]), _array(batch.labels))

    def fresh_statistics(self) -> dict[str, Tensor]:
        """Means and variances of BatchNorm by name, as found by `statistics`; not those of frozen stages."""
        means = self._fresh.means()
        return {
            name: means.get(name, tensor)
            for name, tensor in self.trained_weights().items()
            if is_statistic(name)
        }

    def evaluate(self, steps: int | None = None) -> Iterator[CutBatch]:
        """The held-out images' features at the cut, with the exit's predictions.

        Args:
            steps: the number of batches, if these images make another number; some batches may come again.
        """
        self._model.eval()
        self.mistakes = Mistakes()
        parts = np.split(
            np.arange(self.held_out), np.arange(EVALUATION_BATCH, self.held_out, EVALUATION_BATCH)
        )
        order = islice(cycle(parts), self._evaluation_steps if steps is None else steps)
        for batch in self._held_out_batches(order):
            with torch.inference_mode():
                features = self._features(batch)
                logits = self.exit(features)
            labels, scores = _array(batch.labels), _array(logits)
            predicted = _array(logits.argmax(dim=1))
            self.mistakes.note(batch.numbers, labels, predicted, scores)
            yield CutBatch(_array(features), labels, predicted, normalized_entropy(scores))

    def _batches_of(self, image_set: LabelledImages, is_frozen: bool) -> Batches:
        """`is_frozen`: the batches have features instead of images."""
        if is_frozen:
            return partial(self.features.batches, image_set)
        return batches_at(self._place, image_set, self._spec)

    def _train_features(self, batch: Batch, precision: Precision = "fp32") -> Sequence[Tensor]:
        """The input of each exit: the features of a batch at its cut, (B, *feature_shape) there."""
        if self._is_frozen and self._spec.augmentation == "none":
            return [batch.images]
        images = augment(batch.images, self._spec)
        with precision_at(self._place, precision):
            found: Tensor | list[Tensor] = self.body(images)
        return [one.float() for one in found] if isinstance(found, list) else [found.float()]

    def _features(self, batch: Batch) -> Tensor:
        """The client network's features of an unchanged batch: (B, *feature_shape)."""
        features: Tensor = batch.images if self._is_frozen else self.client(batch.images)
        return features

    def weights(self) -> dict[str, Tensor]:
        """Client network and exit, by name."""
        return self._model.state_dict()

    def trained_weights(self) -> dict[str, Tensor]:
        """Those of `weights` that training changes, and that are sent; not those of frozen stages."""
        return {name: tensor for name, tensor in self.weights().items() if name not in self._frozen_keys}

    def frozen_weights(self) -> dict[str, Tensor]:
        """Those of `weights` that are the same in the whole fleet from the first round on."""
        return {name: tensor for name, tensor in self.weights().items() if name in self._frozen_keys}

    def digest(self) -> str:
        return weights_digest(self.weights())

    def state(self) -> dict[str, Any]:
        """Everything that the next round depends on."""
        return {"model": self._model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def adopt(self, weights: Mapping[str, Tensor]) -> None:
        """Continue from other weights, without momentum."""
        self._model.load_state_dict(weights)
        self.features.forget()
        self.forget_momentum()

    def forget_momentum(self) -> None:
        self.optimizer.state.clear()

    def load(self, state: dict[str, Any]) -> None:
        self._model.load_state_dict(state["model"])
        self.features.forget()
        self.optimizer.load_state_dict(state["optimizer"])


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    return tensor.cpu().numpy()
