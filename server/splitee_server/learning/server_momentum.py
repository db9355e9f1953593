# SPDX-License-Identifier: Apache-2.0
"""Momentum of the averages over rounds."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from splitee.training.batchnorm_statistics import is_statistic
from splitee.training.state import COUNTER

Weights = Mapping[str, Tensor]


class ServerMomentum:
    """w <- w + v, where v <- beta v + (mean - w): w of the last commit, mean of the round's networks.

    This is FedAvgM (Hsu et al. 2019, arXiv 1909.06335) with a server's learning rate of 1. BatchNorm's
    statistics have no momentum. A tensor that was in no commit yet begins without momentum.
    """

    def __init__(self, beta: float) -> None:
        self._beta = beta
        self._velocity: dict[str, Tensor] = {}

    @torch.no_grad()
    def apply(self, means: Weights, committed: Weights) -> dict[str, Tensor]:
        """The tensors to commit in place of `means`, for the names for which they differ.

        Args:
            means: a round's averages, by name.
            committed: the same tensors as of the last commit, if they were in one.
        """
        if not self._beta:
            return {}
        names = [name for name in sorted(means) if not (name.endswith(COUNTER) or is_statistic(name))]
        velocity = {
            name: means[name] - committed[name] + self._beta * self._velocity.get(name, torch.tensor(0.0))
            for name in names
            if name in committed
        }
        self._velocity = velocity
        return {name: committed[name] + change for name, change in velocity.items()}

    def state(self) -> dict[str, Tensor]:
        return dict(self._velocity)

    def load(self, state: Weights) -> None:
        self._velocity = dict(state)
