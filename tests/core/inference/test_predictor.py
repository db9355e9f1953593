# SPDX-License-Identifier: Apache-2.0
"""Who predicts: the exit, or the trunk, for no more images than a device's owner allows; in batches, too."""

from __future__ import annotations

import graphs
import msgspec
import numpy as np
import pytest

from splitee.inference.combination import Combination
from splitee.inference.graphs import ClientModel
from splitee.inference.manifest import ClientManifest
from splitee.inference.predictor import WINDOW, OffloadFloors, Predictor
from splitee.inference.uncertainty import Array
from splitee.samples.fitting import Pixels


class CountingTrunk:
    """Answers nothing, and counts."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.images = 0

    def logits(self, features: Array, waited: float = 0.0) -> Array | None:
        self.asked.extend(range(self.images, self.images + len(features)))
        return None


def model_that_is_never_sure() -> ClientModel:
    data = graphs.graph().SerializeToString()
    return ClientModel.of(graphs.manifest(data, threshold=0.0), data, threads=1)


def predict(floors: OffloadFloors, count: int) -> tuple[list[int], list[str]]:
    """The numbers of the images that were asked about, and each one's source."""
    trunk = CountingTrunk()
    predictor = Predictor(model_that_is_never_sure(), trunk=trunk, floors=floors)
    pixels = np.random.default_rng(0).integers(0, 256, graphs.SHAPE, np.uint8)
    sources = []
    for trunk.images in range(count):
        sources.append(predictor(pixels).source)
    return trunk.asked, sources


@pytest.mark.parametrize(("share", "asked"), [(0.0, 0), (0.25, 25), (0.29, 29), (1.0, WINDOW)])
def test_no_window_of_images_has_more_questions_than_allowed(share: float, asked: int) -> None:
    found, sources = predict(OffloadFloors(most_offload=share), 3 * WINDOW)
    windows = [sum(start <= image < start + WINDOW for image in found) for start in range(2 * WINDOW)]
    assert max(windows) == asked
    assert len(found) == 3 * asked
    assert set(sources) == {"local-fallback"}


def test_a_threshold_below_the_owners_does_not_count() -> None:
    found, sources = predict(OffloadFloors(lowest_threshold=1.0), 5)
    assert (found, set(sources)) == ([], {"exit"})


class SureTrunk:
    """Answers that it is the second class."""

    def logits(self, features: Array, waited: float = 0.0) -> Array | None:
        return np.array([[0.0, 1.0]], "f4")


@pytest.mark.parametrize(
    ("combination", "label"), [(Combination(0.0, 1.0), "b"), (Combination(50.0, 0.01), "a")]
)
def test_an_offloaded_image_is_predicted_by_both_as_the_model_says(
    combination: Combination, label: str
) -> None:
    data = graphs.graph().SerializeToString()
    model = ClientModel.of(graphs.manifest(data, threshold=0.0, combination=combination), data, threads=1)
    _, logits = model(_pixels()[None])
    assert logits[0, 0] > logits[0, 1], "the exit says a"
    predicted = Predictor(model, trunk=SureTrunk())(_pixels())
    assert (predicted.label, predicted.source) == (label, "trunk")
    assert Predictor(model, threshold=1.0, trunk=SureTrunk())(_pixels()).source == "exit"


def _pixels() -> Pixels:
    """An image of which the exit says that it is the first class."""
    data = graphs.graph().SerializeToString()
    model = ClientModel.of(graphs.manifest(data), data, threads=1)
    for seed in range(100):
        pixels = np.random.default_rng(seed).integers(0, 256, graphs.SHAPE, np.uint8)
        _, logits = model(pixels[None])
        if logits[0, 0] > logits[0, 1]:
            return pixels
    raise AssertionError("none of 100")


class EchoingTrunk:
    """Answers the first class for the features whose first number is at least `bound`, else the second."""

    def __init__(self, bound: float) -> None:
        self.requests: list[int] = []
        self._bound = bound

    def logits(self, features: Array, waited: float = 0.0) -> Array | None:
        self.requests.append(len(features))
        first = features.reshape(len(features), -1)[:, 0] >= self._bound
        return np.stack([first, ~first], axis=1).astype("f4")


def test_a_batch_is_predicted_as_its_images_are_one_by_one_with_one_request() -> None:
    data = graphs.graph().SerializeToString()
    model = ClientModel.of(graphs.manifest(data), data, threads=1)
    pixels = np.random.default_rng(0).integers(0, 256, (20, *graphs.SHAPE), np.uint8)
    features, logits = model(pixels)
    threshold = float(np.median(model.uncertainty(logits)))
    bound = float(np.median(features.reshape(20, -1)[:, 0]))
    together, single = EchoingTrunk(bound), EchoingTrunk(bound)
    batch = Predictor(model, threshold=threshold, trunk=together).batch(pixels)
    predict_one = Predictor(model, threshold=threshold, trunk=single)
    one_by_one = [predict_one(each) for each in pixels]
    assert together.requests == [10] and single.requests == [1] * 10
    assert {(each.source, each.label) for each in batch if each.source == "trunk"} == {
        ("trunk", "a"),
        ("trunk", "b"),
    }
    for ours, theirs in zip(batch, one_by_one, strict=True):
        assert (ours.label, ours.source) == (theirs.label, theirs.source)
        assert ours.probability == pytest.approx(theirs.probability, abs=1e-6)
        assert ours.entropy == pytest.approx(theirs.entropy, abs=1e-6)


def test_no_window_has_more_questions_than_allowed_in_batches_either() -> None:
    trunk = CountingTrunk()
    predictor = Predictor(model_that_is_never_sure(), trunk=trunk, floors=OffloadFloors(most_offload=0.25))
    pixels = np.random.default_rng(0).integers(0, 256, (8, *graphs.SHAPE), np.uint8)
    for _ in range(2 * WINDOW // 8):
        predictor.batch(pixels)
    assert len(trunk.asked) == 2 * 25


@pytest.mark.parametrize("weight", [-0.1, 101.0, float("nan")])
def test_a_manifest_whose_combination_is_out_of_bounds_is_none(weight: float) -> None:
    described = graphs.manifest(b"", combination=Combination(weight, 1.0))
    with pytest.raises(msgspec.ValidationError, match="combination"):
        msgspec.json.decode(msgspec.json.encode(described), type=ClientManifest)
