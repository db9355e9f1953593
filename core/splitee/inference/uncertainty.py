# SPDX-License-Identifier: Apache-2.0
"""Measures of an exit's uncertainty: normalised entropy, or 1 - the largest probability."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from splitee.inference.manifest import Measure

Array = npt.NDArray[np.float32]


def softmax(logits: Array) -> Array:
    """(N, K) -> (N, K)."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: Array = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


def normalized_entropy(logits: Array) -> Array:
    """Entropy of softmax(logits) over its largest possible value, log(classes). (N, K) -> (N,) in 0..1."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    entropy = -(np.exp(log_probabilities) * log_probabilities).sum(axis=1)
    normalized: Array = np.clip(entropy / math.log(logits.shape[1]), 0, 1)
    return normalized


def uncertainty(logits: Array, measure: Measure) -> Array:
    """Normalised entropy, or 1 - the largest probability. (N, K) -> (N,) in 0..1."""
    if measure == "entropy":
        return normalized_entropy(logits)
    remaining: Array = np.clip(1 - softmax(logits).max(axis=1), 0, 1)
    return remaining
