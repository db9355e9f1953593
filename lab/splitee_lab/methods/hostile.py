# SPDX-License-Identifier: Apache-2.0
"""Clients of a simulation that harm the others: their messages are well-formed, but wrong.

They start each round from the fleet's client network, and send through the fleet's own classes, as honest
clients do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from splitee.networks.split import SplitNetwork
from splitee.protocol.cut_batch import CutBatch
from splitee.protocol.run_spec import RunSpec
from splitee.training.seeds import seed_for
from splitee.training.soft_labels import SoftLabels
from splitee_device.data.images import DeviceData
from splitee_device.training.trainer import ClientTrainer

FLIP_SCALE = 5.0  # of the reversed update: one such client undoes what five honest ones have learnt


class FlipLabels(ClientTrainer):
    """Labels class y as classes - 1 - y, for its own training and the trunk's."""

    def __init__(self, network: SplitNetwork, cut: int, spec: RunSpec, device: str, data: DeviceData) -> None:
        train = data.train.in_memory()
        train = replace(train, labels=spec.num_classes - 1 - train.labels)
        super().__init__(network, cut, spec, device, replace(data, train=train))


class FlipSign(ClientTrainer):
    """Trains honestly, and sends its weights with the round's update reversed, FLIP_SCALE times as long."""

    def round(
        self, number: int, soft_labels: SoftLabels | None = None, steps: int | None = None
    ) -> Iterator[CutBatch]:
        self._start = {name: tensor.clone() for name, tensor in super().weights().items()}
        yield from super().round(number, soft_labels, steps)

    def weights(self) -> dict[str, Tensor]:
        return _plausible({name: self._reversed(name, one) for name, one in super().weights().items()})

    def _reversed(self, name: str, tensor: Tensor) -> Tensor:
        start = self._start[name]
        return start - FLIP_SCALE * (tensor - start) if tensor.is_floating_point() else tensor


class Constant(ClientTrainer):
    """Sends a network of zeros, and the features that it gives: zeros, too."""

    def round(
        self, number: int, soft_labels: SoftLabels | None = None, steps: int | None = None
    ) -> Iterator[CutBatch]:
        for batch in super().round(number, soft_labels, steps):
            yield replace(batch, features=np.zeros_like(batch.features))

    def weights(self) -> dict[str, Tensor]:
        return {name: torch.zeros_like(tensor) for name, tensor in super().weights().items()}


class Noise(ClientTrainer):
    """Sends normal random numbers with the mean and deviation of each honest batch, and of each tensor."""

    def __init__(self, network: SplitNetwork, cut: int, spec: RunSpec, device: str, data: DeviceData) -> None:
        super().__init__(network, cut, spec, device, data)
        self._random = torch.Generator().manual_seed(seed_for(spec.seed, "noise", device))

    def round(
        self, number: int, soft_labels: SoftLabels | None = None, steps: int | None = None
    ) -> Iterator[CutBatch]:
        for batch in super().round(number, soft_labels, steps):
            yield replace(batch, features=self._like(torch.from_numpy(batch.features)).numpy())

    def weights(self) -> dict[str, Tensor]:
        return _plausible({name: self._like(tensor) for name, tensor in super().weights().items()})

    def _like(self, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        deviation = tensor.std(correction=0)
        return tensor.mean() + deviation * torch.randn(tensor.shape, generator=self._random)


def _plausible(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """No variance below 0: the server would refuse it."""
    return {
        name: tensor.clamp(min=0) if name.endswith("running_var") else tensor
        for name, tensor in weights.items()
    }


HOSTILE: dict[str, type[ClientTrainer]] = {
    "flip-labels": FlipLabels,
    "flip-sign": FlipSign,
    "constant": Constant,
    "noise": Noise,
}
