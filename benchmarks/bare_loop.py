# SPDX-License-Identifier: Apache-2.0
"""The training of trunks as a plain torch loop: the least time that any server needs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splitee.networks.split import build_for
from splitee.protocol.cut_batch import CutBatch
from splitee.protocol.run_spec import RunSpec
from splitee.training.optimizer import make_optimizer


def made_up(spec: RunSpec, shape: tuple[int, ...], seed: int) -> CutBatch:
    """A batch of random features, without negative values as after a ReLU, and random labels."""
    draw = np.random.default_rng(seed)
    features = draw.normal(size=(spec.batch_size, *shape)).astype(np.float32).clip(min=0)
    return CutBatch(features, draw.integers(0, spec.num_classes, spec.batch_size))


class BareLoop:
    """Trains one trunk for all cuts or, under averaging, one for each cut."""

    def __init__(self, spec: RunSpec, batches: Mapping[int, CutBatch]) -> None:
        """`batches`: by cut; they are trained in turn."""
        shared = build_for(spec)
        shared_optimizer = make_optimizer(shared.trunk(1).parameters(), spec)
        steps: list[tuple[nn.Module, torch.optim.Optimizer, Tensor, Tensor]] = []
        for cut, batch in batches.items():
            trunk, optimizer = shared.trunk(cut), shared_optimizer
            if spec.strategy == "averaging":
                trunk = build_for(spec).trunk(cut)
                optimizer = make_optimizer(trunk.parameters(), spec)
            trunk.train()
            steps.append((trunk, optimizer, torch.from_numpy(batch.features), torch.from_numpy(batch.labels)))
        self._steps = itertools.cycle(steps)

    def train(self, batches: int) -> None:
        for trunk, optimizer, features, labels in itertools.islice(self._steps, batches):
            optimizer.zero_grad()
            F.cross_entropy(trunk(features), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
