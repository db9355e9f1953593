# SPDX-License-Identifier: Apache-2.0
"""A client of split learning: stages 1..cut, trained by a gradient at the cut that it does not compute."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from splitee.networks.frozen import set_training
from splitee.training.augmentation import augment
from splitee.training.epochs import epoch_batches
from splitee.training.learning_rate import learning_rate, set_rate
from splitee.training.optimizer import make_optimizer
from splitee.training.placement import precision_at, seed_at
from splitee.training.seeds import seed_for
from splitee_device.data.batches import batches_at
from splitee_lab.methods.baselines import held_out_batches
from splitee_lab.methods.experiment import Experiment


class Forward(NamedTuple):
    """A batch at the cut: `features` (B, *feature_shape) for `learn`, `labels` (B,)."""

    step: int
    features: Tensor
    labels: Tensor


class SplitClient:
    """Same batches, seeds and schedule as a device's trainer."""

    def __init__(self, experiment: Experiment, name: str, cut: int) -> None:
        self.network: nn.Module = experiment.build().client(cut)
        self._experiment = experiment
        self._spec = experiment.spec
        self._name = name
        self._place = torch.device(experiment.place)
        self._batches = batches_at(self._place, experiment.devices[name].data.train, experiment.spec)
        self._frozen = experiment.network.frozen_modules
        self._frozen_keys = set(experiment.network.frozen_keys)
        trained = [one for one in self.network.parameters() if one.requires_grad]
        self._optimizer = make_optimizer(trained, self._spec) if trained else None

    def round(self, number: int) -> Iterator[Forward]:
        """The batches of round `number` (from 1); `learn` must be called for each before the next."""
        spec, samples = self._spec, self._experiment.samples[self._name]
        steps = self._experiment.batches(samples)
        set_training(self.network, self._frozen)
        order = epoch_batches(spec, self._name, number, samples)
        for step, batch in enumerate(self._batches(order)):
            seed_at(self._place, seed_for(spec.seed, self._name, number, step))
            if self._optimizer is not None:
                set_rate(self._optimizer, learning_rate(spec, number, step, steps))
            images = augment(batch.images, spec)
            with precision_at(self._place, spec.precision):
                features = self.network(images).float()
            yield Forward(step, features, batch.labels)

    def learn(self, features: Tensor, gradient: Tensor | None) -> None:
        """One step by the `gradient` of a loss with respect to `features`; None: all is frozen."""
        if self._optimizer is not None:
            self._optimizer.zero_grad(set_to_none=True)
            features.backward(gradient)  # type: ignore[no-untyped-call]
            self._optimizer.step()

    def trained_weights(self) -> dict[str, Tensor]:
        """The weights that training changes, by name: not those of frozen stages."""
        weights = self.network.state_dict()
        return {name: one for name, one in weights.items() if name not in self._frozen_keys}

    def forget_momentum(self) -> None:
        if self._optimizer is not None:
            self._optimizer.state.clear()

    def held_out(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Features (B, *feature_shape) of the held-out images, and their labels (B,)."""
        self.network.eval()
        for images, labels in held_out_batches(self._experiment.held_out, self._spec):
            with torch.inference_mode():
                features = self.network(images.to(self._place))
            yield features, labels
