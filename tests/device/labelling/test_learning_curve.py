# SPDX-License-Identifier: Apache-2.0
"""Whether labels are enough, for known cases: classes that are easy, hard, or hardly labelled."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from splitee_device.labelling.learning_curve import LEAST, Enough, how_much_is_enough
from splitee_device.labelling.linear_exit import Labels, fit, reduce

Features = npt.NDArray[np.float64]


def images(*counts: int, apart: float, seed: int = 0, size: int = 20) -> tuple[Features, Labels]:
    """Normally distributed features around a mean for each class."""
    random = np.random.default_rng(seed)
    means = apart * random.normal(size=(len(counts), size)) / np.sqrt(size)
    labels = np.repeat(np.arange(len(counts)), counts)
    return means[labels] + random.normal(size=(len(labels), size)), labels


def names(count: int) -> tuple[str, ...]:
    return tuple("abcdefgh"[:count])


def test_verdict_is_enough_for_an_easy_task_and_not_for_few_hard_labels() -> None:
    easy = how_much_is_enough(*images(150, 150, 150, apart=12), names(3))
    assert easy.verdict.startswith("Enough")
    assert easy.curve[-1].accuracy.mean > 0.99
    hard = how_much_is_enough(*images(12, 12, 12, apart=2), names(3))
    assert not hard.verdict.startswith("Enough")
    assert hard.gain is not None and hard.gain.mean > 0.02


def test_predicted_gain_has_the_magnitude_of_the_measured_gain() -> None:
    """Over 20 sets of images; the gain is measured on many other images."""
    predicted, brought = [], []
    for seed in range(20):
        features, labels = images(400, 400, 400, apart=4, seed=seed)
        order = np.random.default_rng(seed).permutation(len(labels))
        few, more, test = order[:60], order[:110], order[200:]
        found = how_much_is_enough(features[few], labels[few], names(3), seed=seed)
        assert found.gain is not None
        predicted.append(found.gain.mean)
        accuracies = [
            (fit(features[part], labels[part], 3).predict(features[test]) == labels[test]).mean()
            for part in (few, more)
        ]
        brought.append(accuracies[1] - accuracies[0])
    assert 0.3 < np.mean(predicted) / np.mean(brought) < 3


def test_class_with_few_and_hard_images_is_advised_next() -> None:
    random = np.random.default_rng(1)
    means = np.zeros((3, 20))
    means[0, 0], means[1, 1], means[2, 1] = 6, 6, 3  # c is near b, and has few images
    labels = np.repeat([0, 1, 2], [200, 200, 20])
    features = means[labels] + random.normal(size=(420, 20))
    found = how_much_is_enough(features, labels, names(3))
    assert found.label_next == "c"
    assert found.advice.startswith("Label c next: 50 more of it would add about")


def test_class_with_too_few_images_to_measure_is_advised_next() -> None:
    found = how_much_is_enough(*images(30, 30, LEAST - 1, apart=5), names(3))
    assert found.label_next == "c"
    assert found.classes[2].recall is None
    assert found.classes[0].recall is not None


def test_rare_class_beside_thousands_of_images_is_measured() -> None:
    """Its share of the images that are fitted is less than one image."""
    found = how_much_is_enough(*images(20_000, LEAST, apart=30), names(2))
    assert [one.images for one in found.classes] == [20_000, LEAST]
    assert found.classes[1].recall is not None and found.classes[1].recall.mean > 0.9
    assert found.curve[-1].accuracy.mean > 0.99


def test_too_few_labels_are_reported_without_a_curve() -> None:
    found = how_much_is_enough(*images(30, 2, apart=5), names(2))
    assert (found.curve, found.gain) == ((), None)
    assert found.verdict.startswith("Too few to tell")
    none = how_much_is_enough(np.zeros((0, 4)), np.zeros(0, np.int64), ())
    assert none.advice == "Make a class first."


def test_same_images_give_the_same_result() -> None:
    def measure() -> Enough:
        return how_much_is_enough(*images(20, 20, apart=3), names(2))

    assert measure() == measure()


def test_features_without_variance_give_finite_values_and_a_curve() -> None:
    features, labels = images(10, 10, apart=3)
    features[:, 3] = 7
    assert np.isfinite(reduce(features)).all()
    assert how_much_is_enough(np.ones((20, 4)), labels, names(2)).curve


def test_fit_minimises_the_documented_loss() -> None:
    """Each random step away from the fit increases the loss that its docstring gives."""
    features, labels = images(20, 30, apart=2, size=3)
    values = reduce(features)
    found = fit(values, labels, 2)

    def loss(weights: Features, bias: Features) -> float:
        logits = values @ weights + bias
        logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        return float(-logs[np.arange(len(labels)), labels].mean() + 0.005 * (weights**2).sum())

    least = loss(found.weights, found.bias)
    random = np.random.default_rng(0)
    for _ in range(20):
        step = 0.01 * random.normal(size=found.weights.shape)
        assert loss(found.weights + step, found.bias) > least
