# SPDX-License-Identifier: Apache-2.0
"""The combination of exit and trunk for offloaded images: fitted on some, judged on others."""

from __future__ import annotations

import numpy as np
import pytest

from splitee.inference.combination import TRUNK_ALONE, Combination
from splitee.inference.uncertainty import softmax
from splitee_export.combination import HeldOutLogits, fit

CLASSES = 10


def drawn(weights: tuple[float, float], count: int, seed: int = 1) -> HeldOutLogits:
    """Labels are drawn from the weighted probabilities of exit and trunk."""
    generator = np.random.default_rng(seed)
    exits, trunks = generator.normal(size=(2, count, CLASSES)).astype("f4") * 3
    probabilities = softmax(weights[0] * exits + weights[1] * trunks).cumsum(axis=1)
    labels = (generator.random((count, 1)) > probabilities).sum(axis=1).clip(max=CLASSES - 1)
    return HeldOutLogits(exits, trunks, labels)


@pytest.mark.parametrize("weights", [(0.4, 0.8), (1.0, 0.3), (0.2, 0.1)])
def test_fit_finds_the_weights_that_the_labels_were_drawn_with(weights: tuple[float, float]) -> None:
    found = fit(drawn(weights, 20_000)).combination
    assert (found.exit, found.trunk) == pytest.approx(weights, rel=0.05, abs=0.02)


def test_combination_is_more_accurate_on_other_images_than_exit_or_trunk() -> None:
    found = fit(drawn((0.5, 0.5), 1000))
    others = drawn((0.5, 0.5), 5000, seed=2)
    combined = others.right(found.combination).mean()
    assert combined > max(others.exit_right.mean(), others.trunk_right.mean()) + 0.03
    assert found.right.mean() == pytest.approx(combined, abs=0.05), "judged on images not fitted on"


@pytest.mark.parametrize("seed", range(5))
def test_uninformative_exit_does_not_lower_the_accuracy_of_the_trunk(seed: int) -> None:
    found = fit(drawn((0.0, 1.0), 1000, seed))
    others = drawn((0.0, 1.0), 5000, seed + 100)
    assert others.right(found.combination).mean() >= others.trunk_right.mean() - 0.01


def test_trunk_predicts_alone_if_the_combination_is_less_accurate() -> None:
    """By chance a fit on few images is no better; on the images that judge it, it is never worse."""
    found = []
    for seed in range(40):
        logits = drawn((0.1, 0.5), 60, seed)
        found.append(fit(logits))
        assert found[-1].right.sum() >= max(logits.exit_right.sum(), logits.trunk_right.sum())
    alone = [one.combination == TRUNK_ALONE for one in found]
    assert any(alone)
    assert not all(alone)


def test_weights_stay_bounded_if_all_predictions_are_right() -> None:
    labels = np.arange(200) % CLASSES
    sure = np.eye(CLASSES, dtype="f4")[labels] * 20
    found = fit(HeldOutLogits(sure, sure, labels))
    assert found.right.all()
    assert 0.1 < found.combination.exit == found.combination.trunk < 3


@pytest.mark.parametrize("largest", [0.0, 6e4])
def test_weights_are_finite_for_extreme_logits(largest: float) -> None:
    generator = np.random.default_rng(1)
    exits, trunks = largest * generator.choice([-1.0, 1.0], (2, 200, CLASSES)).astype("f4")
    found = fit(HeldOutLogits(exits, trunks, generator.integers(0, CLASSES, 200)))
    assert np.isfinite([found.combination.exit, found.combination.trunk]).all()


def test_combined_logits_are_the_weighted_sum_of_exit_and_trunk() -> None:
    exit_logits, trunk_logits = np.array([[1.0, 2.0]], "f4"), np.array([[3.0, 0.0]], "f4")
    assert Combination(2.0, 0.5)(exit_logits, trunk_logits).tolist() == [[3.5, 4.0]]
    assert TRUNK_ALONE(exit_logits, trunk_logits).tolist() == trunk_logits.tolist()
