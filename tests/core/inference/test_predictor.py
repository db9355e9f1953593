"""How many images a device asks about: never more than its owner allows, whatever a model says."""

from __future__ import annotations

import graphs
import numpy as np
import pytest

from splitee.inference.graphs import ClientModel
from splitee.inference.predictor import WINDOW, OffloadFloors, Predictor
from splitee.inference.uncertainty import Array


class CountingTrunk:
    """Answers nothing, and counts."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.images = 0

    def logits(self, features: Array, waited: float = 0.0) -> Array | None:
        self.asked.append(self.images)
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
