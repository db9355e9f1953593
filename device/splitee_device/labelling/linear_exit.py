# SPDX-License-Identifier: Apache-2.0
"""An exit's linear layer, refitted on features alone: multinomial logistic regression in numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

DIRECTIONS = 64  # principal directions of most variance that are kept
DECAY = 0.01  # L2 penalty on the weights of features of unit variance
STEPS = 100


@dataclass(frozen=True)
class LinearExit:
    """`weights` (D, K) and `bias` (K,)."""

    weights: Matrix
    bias: Matrix

    def predict(self, features: Matrix) -> Labels:
        """(N, D) -> (N,)."""
        found: Labels = (features @ self.weights + self.bias).argmax(1)
        return found


def reduce(features: npt.NDArray[np.floating]) -> Matrix:
    """Standardised features in at most DIRECTIONS principal directions: (N, D) -> (N, d).

    Their mean is 0. One common scale gives a mean square of 1, so that distances stay in proportion.
    """
    values = np.asarray(features, np.float64)
    std = values.std(0)
    values = (values - values.mean(0)) / np.where(std > 0, std, 1)
    if values.shape[1] > DIRECTIONS:
        _, directions = np.linalg.eigh(values.T @ values)
        values = values @ directions[:, -DIRECTIONS:]
    scale: float = np.sqrt((values**2).mean())
    reduced: Matrix = values / scale if scale > 0 else values
    return reduced


def fit(features: Matrix, labels: Labels, classes: int) -> LinearExit:
    """Minimises the mean cross-entropy plus DECAY / 2 * |weights|^2 by STEPS accelerated gradient steps.

    The step is 1 over the Lipschitz constant of the gradient (Böhning, "Multinomial logistic regression
    algorithm", 1992: half the largest eigenvalue of the features' second moment). The momentum is Nesterov's.

    Args:
        features: (N, D).
        labels: (N,), below `classes`.
    """
    inputs = np.hstack([features, np.ones((len(features), 1))])  # (N, D + 1)
    decay = np.full((inputs.shape[1], 1), DECAY)
    decay[-1] = 0.0  # none for the bias
    target = np.eye(classes)[labels]  # (N, K)
    largest = np.linalg.eigvalsh(inputs.T @ inputs)[-1] / len(inputs)
    rate = 1 / (largest / 2 + DECAY)
    weights = ahead = np.zeros((inputs.shape[1], classes))
    for step in range(STEPS):
        error = _softmax(inputs @ ahead) - target
        before, weights = weights, ahead - rate * (inputs.T @ error / len(inputs) + decay * ahead)
        ahead = weights + step / (step + 3) * (weights - before)
    return LinearExit(weights[:-1], weights[-1])


def _softmax(logits: Matrix) -> Matrix:
    exponentials: Matrix = np.exp(logits - logits.max(1, keepdims=True))
    exponentials /= exponentials.sum(1, keepdims=True)
    return exponentials
