# SPDX-License-Identifier: Apache-2.0
"""Fits the weights of exit and trunk in the prediction of an offloaded image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from splitee.inference.combination import LARGEST_WEIGHT, TRUNK_ALONE, Combination
from splitee.inference.uncertainty import softmax

EXIT_ALONE = Combination(1.0, 0.0)
FOLDS = 5
STEPS = 50  # of Newton's method; it takes about 8

Right = npt.NDArray[np.bool_]
Real = npt.NDArray[np.float64]


@dataclass(frozen=True)
class HeldOutLogits:
    """N held-out images: the logits (N, classes) of the exit and of the trunk, and the labels (N,)."""

    exit: npt.NDArray[np.floating]
    trunk: npt.NDArray[np.floating]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, chosen: Right) -> HeldOutLogits:
        return HeldOutLogits(self.exit[chosen], self.trunk[chosen], self.labels[chosen])

    def right(self, combination: Combination) -> Right:
        """(N,): whether the combination predicts the label."""
        right: Right = combination(self.exit, self.trunk).argmax(axis=1) == self.labels
        return right

    @property
    def exit_right(self) -> Right:
        return self.right(EXIT_ALONE)

    @property
    def trunk_right(self) -> Right:
        return self.right(TRUNK_ALONE)

    @classmethod
    def join(cls, parts: Sequence[HeldOutLogits]) -> HeldOutLogits:
        """The images of all parts, of which there must be one at least, in order and in single precision."""
        exits, trunks = ([getattr(part, name) for part in parts] for name in ("exit", "trunk"))
        return cls(
            np.concatenate(exits).astype(np.float32),
            np.concatenate(trunks).astype(np.float32),
            np.concatenate([part.labels for part in parts]),
        )


@dataclass(frozen=True)
class Fitted:
    """A combination, and for each of the N images whether one that was fitted without it is right."""

    combination: Combination
    right: Right


def fit(logits: HeldOutLogits) -> Fitted:
    """The combination that makes the labels most likely, or the trunk alone if the combination is worse.

    It is judged by cross-validation: each fold of the images is predicted with a combination fitted on the
    others. These predictions must be right at least as often as those of the better of exit and trunk.
    """
    fold = np.arange(len(logits)) % FOLDS
    right = np.zeros(len(logits), np.bool_)
    for number in range(FOLDS):
        right[fold == number] = logits[fold == number].right(_most_likely(logits[fold != number]))
    if right.sum() < max(logits.trunk_right.sum(), logits.exit_right.sum()):
        return Fitted(TRUNK_ALONE, logits.trunk_right)
    return Fitted(_most_likely(logits), right)


def _most_likely(logits: HeldOutLogits) -> Combination:
    """The weights, none below 0, that minimise the mean cross-entropy, which is convex in them.

    They have a normal prior with variance 1. Without it, the weights would grow without bound for predictions
    that have no error.
    """
    both = np.stack([logits.exit, logits.trunk], axis=2, dtype=np.float64)  # (N, classes, 2)
    weights = _minimum(both, logits.labels)
    if weights.min() < 0:
        only = int(weights.argmax())
        weights = np.zeros(2)
        weights[only] = max(0.0, _minimum(both[:, :, [only]], logits.labels)[0])
    if not np.isfinite(weights).all():  # the logits are too large to distinguish
        return TRUNK_ALONE
    exit_weight, trunk_weight = np.minimum(weights, LARGEST_WEIGHT).tolist()
    return Combination(exit_weight, trunk_weight)


def _minimum(values: Real, labels: npt.NDArray[np.int64]) -> Real:
    """Newton's method. `values`: (N, classes, K) logits; returns their K weights."""
    of_label = values[np.arange(len(labels)), labels]  # (N, K)
    weights = np.full(values.shape[2], 1 / values.shape[2])
    for _ in range(STEPS):
        probabilities = softmax(values @ weights)[:, :, None]  # (N, classes, 1)
        mean = (probabilities * values).sum(axis=1)  # (N, K)
        centred = values - mean[:, None]
        curvature = np.einsum("nck,ncl->kl", probabilities * centred, centred) / len(labels)
        slope = (mean - of_label).mean(axis=0) + weights / len(labels)
        step = np.linalg.solve(curvature + np.eye(len(weights)) / len(labels), slope)
        weights = weights - step * min(1.0, 1 / np.abs(step).max(initial=1e-12))  # at most 1 at once
        if np.abs(step).max() < 1e-6:
            break
    return weights
