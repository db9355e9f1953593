# SPDX-License-Identifier: Apache-2.0
"""The division of a device's samples into the batches of a round."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from splitee.protocol.cut_batch import EVALUATION_BATCH
from splitee.protocol.run_spec import RunSpec
from splitee.training.seeds import seed_for


def steps_per_round(spec: RunSpec, samples: int) -> int:
    """Batches that a device trains in a round: as the run sets it, or one pass of whole batches."""
    return spec.steps or max(1, samples // spec.batch_size)


def evaluation_steps(held_out: int) -> int:
    """Batches that so many held-out samples make."""
    return -(-held_out // EVALUATION_BATCH)


def epoch_batches(
    spec: RunSpec, device: str, round_number: int, samples: int, steps: int | None = None
) -> Iterable[np.ndarray]:
    """The indices of each batch of a round, in an order that (seed, device, round) fixes.

    Args:
        steps: number of batches, if it is not that of `steps_per_round`.
    """
    generator = np.random.default_rng(seed_for(spec.seed, device, round_number))
    size = min(spec.batch_size, samples)
    order = np.empty(0, dtype=np.int64)
    for _ in range(steps_per_round(spec, samples) if steps is None else steps):
        if len(order) < size:
            order = np.concatenate([order, generator.permutation(samples)])
        yield order[:size]
        order = order[size:]
