# SPDX-License-Identifier: Apache-2.0
"""The exit predicts, or the trunk for no more images than a device's owner allows; also in batches."""

from __future__ import annotations

import graphs
import msgspec
import numpy as np
import pytest

from splitee.inference.combination import Combination
from splitee.inference.graphs import ClientModel
from splitee.inference.manifest import ClientManifest
from splitee.inference.predictor import WINDOW, OffloadLimits, Predictor
from splitee.inference.uncertainty import Array
from splitee.samples.fitting import Pixels


class CountingTrunk:
    """Returns no logits, and records the requested images."""

    def __init__(self) -> None:
        self.requested: list[int] = []
        self.images = 0

    def logits(self, features: Array, waited: float = 0.0) -> Array | None:
        self.requested.extend(range(self.images, self.images + len(features)))
        return None


def always_uncertain_model() -> ClientModel:
    data = graphs.graph().SerializeToString()
    return ClientModel.of(graphs.manifest(data, threshold=0.0), data, threads=1)


def predict(offload_limits: OffloadLimits, count: int) -> tuple[list[int], list[str]]:
    """The numbers of the images that were requested, and the source of each prediction."""
    trunk = CountingTrunk()
    predictor = Predictor(always_uncertain_model(), trunk=trunk, offload_limits=offload_limits)
    pixels = np.random.default_rng(0).integers(0, 256, graphs.SHAPE, np.uint8)
    sources = []
    for trunk.images in range(count):
        sources.append(predictor(pixels).source)
    return trunk.requested, sources


@pytest.mark.parametrize(("share", "requested"), [(0.0, 0), (0.25, 25), (0.29, 29), (1.0, WINDOW)])
def test_offload_share_is_limited_in_each_window_of_images(share: float, requested: int) -> None:
    found, sources = predict(OffloadLimits(most_offload=share), 3 * WINDOW)
    windows = [sum(start <= image < start + WINDOW for image in found) for start in range(2 * WINDOW)]
    assert max(windows) == requested
    assert len(found) == 3 * requested
    assert set(sources) == {"local-fallback"}


def test_lowest_threshold_of_the_owner_overrides_a_lower_one() -> None:
    found, sources = predict(OffloadLimits(lowest_threshold=1.0), 5)
    assert (found, set(sources)) == ([], {"exit"})


class SecondClassTrunk:
    """Predicts the second class."""

    def logits(self, features: Array, waited: float = 0.0) -> Array | None:
        return np.array([[0.0, 1.0]], "f4")


@pytest.mark.parametrize(
    ("combination", "label"), [(Combination(0.0, 1.0), "b"), (Combination(50.0, 0.01), "a")]
)
def test_prediction_of_an_offloaded_image_combines_exit_and_trunk(
    combination: Combination, label: str
) -> None:
    data = graphs.graph().SerializeToString()
    model = ClientModel.of(graphs.manifest(data, threshold=0.0, combination=combination), data, threads=1)
    _, logits = model(_pixels()[None])
    assert logits[0, 0] > logits[0, 1], "the exit says a"
    predicted = Predictor(model, trunk=SecondClassTrunk())(_pixels())
    assert (predicted.label, predicted.source) == (label, "trunk")
    assert Predictor(model, threshold=1.0, trunk=SecondClassTrunk())(_pixels()).source == "exit"


def _pixels() -> Pixels:
    """An image for which the exit predicts the first class."""
    data = graphs.graph().SerializeToString()
    model = ClientModel.of(graphs.manifest(data), data, threads=1)
    for seed in range(100):
        pixels = np.random.default_rng(seed).integers(0, 256, graphs.SHAPE, np.uint8)
        _, logits = model(pixels[None])
        if logits[0, 0] > logits[0, 1]:
            return pixels
    raise AssertionError("none of 100")


class EchoingTrunk:
    """Predicts the first class for features whose first number is at least `bound`, else the second."""

    def __init__(self, bound: float) -> None:
        self.requests: list[int] = []
        self._bound = bound

    def logits(self, features: Array, waited: float = 0.0) -> Array | None:
        self.requests.append(len(features))
        first = features.reshape(len(features), -1)[:, 0] >= self._bound
        return np.stack([first, ~first], axis=1).astype("f4")


def test_batch_is_predicted_like_single_images_with_one_request() -> None:
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


def test_offload_share_is_limited_for_batches() -> None:
    trunk = CountingTrunk()
    predictor = Predictor(
        always_uncertain_model(), trunk=trunk, offload_limits=OffloadLimits(most_offload=0.25)
    )
    pixels = np.random.default_rng(0).integers(0, 256, (8, *graphs.SHAPE), np.uint8)
    for _ in range(2 * WINDOW // 8):
        predictor.batch(pixels)
    assert len(trunk.requested) == 2 * 25


@pytest.mark.parametrize("weight", [-0.1, 101.0, float("nan")])
def test_manifest_with_a_combination_out_of_bounds_is_refused(weight: float) -> None:
    described = graphs.manifest(b"", combination=Combination(weight, 1.0))
    with pytest.raises(msgspec.ValidationError, match="combination"):
        msgspec.json.decode(msgspec.json.encode(described), type=ClientManifest)
