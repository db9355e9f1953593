"""The device's share of the training: stages 1..cut through the early exit. Knows tensors, not MQTT."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from itertools import cycle, islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from splitee.errors import NetworkError
from splitee.inference.uncertainty import normalized_entropy
from splitee.networks.split import SplitNetwork, build_for
from splitee.protocol.cut_batch import EVALUATION_BATCH, CutBatch, oversized
from splitee.protocol.run_spec import RunSpec
from splitee.training.augmentation import augment
from splitee.training.epochs import epoch_batches, evaluation_steps, steps_a_round
from splitee.training.learning_rate import learning_rate, set_rate
from splitee.training.objective import class_offsets
from splitee.training.optimizer import make_optimizer, precision_at
from splitee.training.seeds import seed_for
from splitee.training.soft_labels import SoftLabels
from splitee.training.state import weights_digest
from splitee.training.weights import client_model
from splitee_device.data.batches import batches_at
from splitee_device.data.images import DeviceData
from splitee_device.training.distillation import Teacher
from splitee_device.training.mistakes import Mistakes


def open_trainer(spec: RunSpec, cut: int, device: str, data: DeviceData) -> ClientTrainer:
    """The trainer of a device in a run, on a network of its own of which it keeps only its part.

    Raises:
        NetworkError: there is no such cut, or the features of a batch at it do not fit a message.
    """
    network = build_for(spec)
    network.check_cut(cut)
    if obstacle := oversized(spec, network.stages[cut - 1].feature_shape):
        raise NetworkError(f"cut {cut}: {obstacle}: a later cut or a smaller --input helps, or --batch-size")
    trainer = ClientTrainer(network, cut, spec, device, data)
    del network
    gc.collect()  # the trunk's weights hang in reference cycles, and a small device needs their memory
    return trainer


class ClientTrainer:
    """One client network and its exit, its optimizer, and what they learn in a round.

    It computes where the network's weights are.
    """

    def __init__(self, network: SplitNetwork, cut: int, spec: RunSpec, device: str, data: DeviceData) -> None:
        network.check_cut(cut)
        self._spec = spec
        self._device = device
        self._data = data
        self._place = next(network.module.parameters()).device
        self._model = client_model(network, cut, spec).to(self._place)
        self.client, self.exit = self._model["client"], self._model["exit"]
        self.optimizer = make_optimizer(self._model.parameters(), spec)
        self._offsets = class_offsets(spec, data.train.labels).to(self._place)
        self._train_batches = batches_at(self._place, data.train, spec)
        self._held_out_batches = batches_at(self._place, data.held_out, spec)
        self.samples = len(data.train)
        self.steps = steps_a_round(spec, self.samples)
        self.held_out = len(data.held_out)
        self._evaluation_steps = evaluation_steps(self.held_out)
        self.loss = 0.0  # mean exit loss on the labels, of the round so far
        self.accuracy = 0.0  # share of the round's training samples that the exit got right
        self.mistakes = Mistakes()  # of the exit, in the evaluation under way or the last one

    def round(
        self, number: int, soft_labels: SoftLabels | None = None, steps: int | None = None
    ) -> Iterator[CutBatch]:
        """Train round `number` (from 1), yielding each batch's features as it goes.

        Args:
            soft_labels: of an earlier round; the exit learns from them beside the labels.
            steps: batches, where they are not as many as these images make.
        """
        self._model.train()
        steps = self.steps if steps is None else steps
        teacher = Teacher(self._spec, self._device, self.samples, soft_labels)
        losses, correct, seen = 0.0, 0, 0
        order = epoch_batches(self._spec, self._device, number, self.samples, steps)
        for step, batch in enumerate(self._train_batches(order)):
            labels = batch.labels
            torch.manual_seed(seed_for(self._spec.seed, self._device, number, step))
            set_rate(self.optimizer, learning_rate(self._spec, number, step, steps))
            with precision_at(self._place):
                features = self.client(augment(batch.images, self._spec))  # (B, *feature_shape)
                logits = self.exit(features)  # (B, num_classes)
                loss = F.cross_entropy(logits + self._offsets, labels)
            self.optimizer.zero_grad(set_to_none=True)
            (loss + teacher.loss(batch.numbers, logits)).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            losses += loss.item()
            correct += int((logits.detach().argmax(dim=1) == labels).sum())
            seen += len(labels)
            self.loss, self.accuracy = losses / (step + 1), correct / seen
            yield CutBatch(_array(features.detach().float()), _array(labels))

    def evaluate(self, steps: int | None = None) -> Iterator[CutBatch]:
        """The held-out images at the cut, with what the exit predicts.

        Args:
            steps: batches, where they are not as many as these images make: fewer, or some once more.
        """
        self._model.eval()
        self.mistakes = Mistakes()
        parts = np.split(
            np.arange(self.held_out), np.arange(EVALUATION_BATCH, self.held_out, EVALUATION_BATCH)
        )
        order = islice(cycle(parts), self._evaluation_steps if steps is None else steps)
        for batch in self._held_out_batches(order):
            with torch.inference_mode(), precision_at(self._place):
                features = self.client(batch.images)
                logits = self.exit(features)
            labels, scores = _array(batch.labels), _array(logits.float())
            predicted = _array(logits.argmax(dim=1))
            self.mistakes.note(batch.numbers, labels, predicted, scores)
            yield CutBatch(_array(features.float()), labels, predicted, normalized_entropy(scores))

    def weights(self) -> dict[str, Tensor]:
        """Client network and exit, by name."""
        return self._model.state_dict()

    def digest(self) -> str:
        return weights_digest(self.weights())

    def state(self) -> dict[str, Any]:
        """Everything the next round depends on."""
        return {"model": self._model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def adopt(self, weights: Mapping[str, Tensor]) -> None:
        """Go on from other weights; their momentum starts anew."""
        self._model.load_state_dict(weights)
        self.forget_momentum()

    def forget_momentum(self) -> None:
        self.optimizer.state.clear()

    def load(self, state: dict[str, Any]) -> None:
        self._model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    return tensor.cpu().numpy()
