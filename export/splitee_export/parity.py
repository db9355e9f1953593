# SPDX-License-Identifier: Apache-2.0
"""Whether a graph gives the same results as torch: on real samples, one at a time and in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np

from splitee.errors import ModelError
from splitee.inference.manifest import Measure, Parity
from splitee.inference.uncertainty import Array, uncertainty

MAX_ERROR = 1e-4  # of the largest value; fp32 on both sides gives about 1e-6
MIN_AGREEMENT = 0.99  # of labels and decisions: values close to a boundary may fall on either side
SINGLE_SAMPLES = 8  # samples that are also run singly
BATCH = 32

Run = Callable[[Array], list[Array]]


def check_parity(
    name: str,
    torch_run: Run,
    onnx_run: Run,
    inputs: Array,
    kind: Literal["pictures", "features", "random"],
    *,
    measure: Measure = "entropy",
    threshold: float = 0.5,
) -> Parity:
    """Compares both on `inputs` (N, ...); their last output is the logits.

    Raises ModelError: a result is off by more than MAX_ERROR, or less than MIN_AGREEMENT of them agree.
    """
    error = 0.0
    labels, decisions = [], []
    for batch in _batches(inputs):
        expected, found = torch_run(batch), onnx_run(batch)
        error = max([error, *map(_error, expected, found)])
        labels.append(expected[-1].argmax(axis=1) == found[-1].argmax(axis=1))
        local = [uncertainty(logits, measure) <= threshold for logits in (expected[-1], found[-1])]
        decisions.append(local[0] == local[1])
    parity = Parity(
        inputs=kind,
        samples=len(inputs),
        max_error=error,
        same_label=float(np.concatenate(labels).mean()),
        same_decision=float(np.concatenate(decisions).mean()),
    )
    if not (error <= MAX_ERROR and min(parity.same_label, parity.same_decision) >= MIN_AGREEMENT):
        raise ModelError(
            f"{name}: ONNX Runtime does not predict as torch does: off by {error:.1e} of the largest value "
            f"(at most {MAX_ERROR:.0e}), same label {parity.same_label:.1%}, same decision "
            f"{parity.same_decision:.1%} of {len(inputs)} {kind}; nothing was exported"
        )
    return parity


def _batches(inputs: Array) -> Iterator[Array]:
    for index in range(min(SINGLE_SAMPLES, len(inputs))):
        yield inputs[index : index + 1]
    for start in range(0, len(inputs), BATCH):
        yield inputs[start : start + BATCH]


def _error(expected: Array, found: Array) -> float:
    if expected.shape != found.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(expected - found).max() / max(float(np.abs(expected).max()), 1e-6))
