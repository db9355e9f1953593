# SPDX-License-Identifier: Apache-2.0
"""The server of methods whose clients all have one cut: a trunk that their batches train in turn."""

from __future__ import annotations

from statistics import median_low

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from splitee.protocol.cut_batch import CutBatch
from splitee_lab.methods.experiment import Experiment
from splitee_lab.methods.wire import Wire, across_the_wire
from splitee_server.learning.class_mix import ClassMix
from splitee_server.learning.strategies.sequential import Sequential


class SharedTrunk:
    """A trunk that is trained like Sequential's, without the fleet's exits.

    Attributes:
        cut: of all clients, the middle one of the experiment's.
        spec: the run's, for clients with no exit but the one at the cut.
        wire: between the clients and this server.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.cut = median_low(device.cut for device in experiment.devices.values())
        self.spec = msgspec.structs.replace(experiment.spec, exit_cuts=())
        self.wire = Wire(self.spec)
        self._experiment = experiment
        self._place = torch.device(experiment.place)
        self._strategy = Sequential(experiment.build(), self.spec)
        self._class_mix = ClassMix(self.spec)
        for name in experiment.samples:
            self._strategy.join(name, self.cut)
        self._any_client = next(iter(experiment.samples))

    @property
    def module(self) -> nn.Module:
        """Stages cut+1..L: features (B, *feature_shape) to logits (B, classes)."""
        return self._strategy.trunk(self._any_client)

    def receive(self, batch: CutBatch, number: int, step: int) -> Tensor:
        """Batch `step` of round `number` comes in; returns its features (B, *feature_shape), as received."""
        return self.wire.batch(batch, "train", number, step).to(self._place)

    def train(self, name: str, features: Tensor, labels: Tensor, number: int, step: int) -> None:
        """One step on a batch of client `name`: `step` (from 0) of round `number` (from 1).

        `features` (B, *feature_shape), as received, have their gradient afterwards, if they require one;
        `labels` (B,).
        """
        steps = self._experiment.batches(self._experiment.samples[name])
        self._class_mix.add(name, labels)
        offsets = self._class_mix.offsets(name, self._place)
        self._strategy.train(
            name, features, labels, round_number=number, step=step, steps=steps, offsets=offsets
        )

    def predict_batch(self, batch: CutBatch) -> npt.NDArray[np.int64]:
        """Labels (B,) for a batch of held-out images."""
        return self.predict(batch.features)

    def predict(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """Labels (B,) for held-out features (B, *feature_shape), which are encoded like those of training."""
        received = across_the_wire(self.spec.codec, features)
        return self._strategy.predict(self._any_client, received.to(self._place)).cpu().numpy()
