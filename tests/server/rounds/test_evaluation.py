# SPDX-License-Identifier: Apache-2.0
"""Counts of an evaluation by class, against a plain count; and what of them is written and published."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtual_fleet import CLASSES, VirtualFleet

from splitee.protocol.accuracies import MOST_CLASSES, Accuracies, ClassRecall
from splitee.statistics import share_interval, wilson
from splitee_server.rounds.class_report import EVALUATION, ClassReport, class_report
from splitee_server.rounds.confusion import Confusion, class_recalls, weakest_class
from splitee_server.rounds.evaluation import Score

THRESHOLD = 0.5


def score(seed: int, images: int, classes: int) -> Score:
    """Random predictions for random images, in batches of 7."""
    generator, found = np.random.default_rng(seed), Score()
    for start in range(0, images, 7):
        size = min(7, images - start)
        labels, exits, trunks = generator.integers(0, classes, (3, size))
        found.add(labels, exits, generator.random(size).astype("f4"), trunks, THRESHOLD)
    return found


@given(st.integers(0, 1 << 20), st.integers(0, 60), st.sampled_from([2, 5, MOST_CLASSES, MOST_CLASSES + 1]))
def test_confusion_counts_match_a_plain_count(seed: int, images: int, classes: int) -> None:
    found = score(seed, images, classes).predictions
    confusion = Confusion.count(found.labels, found.trunk, classes)
    pairs = list(zip(found.labels.tolist(), found.trunk.tolist(), strict=True))
    assert confusion.images.tolist() == [sum(a == k for a, _ in pairs) for k in range(classes)]
    assert confusion.predicted.tolist() == [sum(b == k for _, b in pairs) for k in range(classes)]
    assert confusion.hits.tolist() == [sum(a == b == k for a, b in pairs) for k in range(classes)]
    if classes > MOST_CLASSES:
        assert confusion.matrix is None
    else:
        assert confusion.matrix is not None
        assert all(confusion.matrix[a, b] == pairs.count((a, b)) for a, b in pairs)
        assert confusion.matrix.sum() == images


def test_adaptive_predictions_are_the_exits_up_to_the_threshold() -> None:
    found = Score()
    labels, exits, trunks = np.array([[0, 1, 2, 2], [0, 0, 2, 2], [1, 1, 1, 2]])
    found.add(labels, exits, np.array([0.5, 0.6, 0.1, 0.9], "f4"), trunks, THRESHOLD)
    assert found.predictions.adaptive.tolist() == [0, 1, 2, 2]
    assert found.accuracies() == Accuracies(
        exit_accuracy=0.75, trunk_accuracy=0.5, adaptive_accuracy=1.0, offload_share=0.5
    )


def test_accuracies_and_weakest_class_are_unknown_without_images() -> None:
    assert Score().accuracies() == Accuracies()
    assert weakest_class(()) is None


def test_fleet_accuracy_is_weighted_by_the_images_of_each_device() -> None:
    one, other = score(1, 30, 4), score(2, 10, 4)
    both = Score.over([one, other])
    assert both.images == 40
    shares = [found.accuracies().trunk_accuracy or 0.0 for found in (one, other)]
    assert both.accuracies().trunk_accuracy == pytest.approx((30 * shares[0] + 10 * shares[1]) / 40, abs=1e-5)


def test_class_with_one_missed_image_is_not_the_weakest() -> None:
    glass, paper = ClassRecall("glass", 100, 0.4), ClassRecall("paper", 1, 0.0)
    assert weakest_class((paper, glass)) == glass
    assert weakest_class((ClassRecall("paper", 20, 0.0), glass)) != glass


def test_unnamed_classes_are_numbered_and_classes_without_images_omitted() -> None:
    labels = np.array([0, 2, 2])
    recalls = class_recalls(Confusion.count(labels, np.array([0, 2, 1]), 3), ("glass",))
    assert recalls == (ClassRecall("glass", 1, 1.0), ClassRecall("class 2", 2, 0.5))


def test_class_report_has_images_and_intervals_of_each_class() -> None:
    scores = {"pi-1": score(1, 50, 3), "pi-2": score(2, 20, 3)}
    report = class_report("run", 4, scores, 3, ("a", "b", "c"))
    assert (report.run, report.round, report.class_names) == ("run", 4, ("a", "b", "c"))
    for device, of_device in report.devices.items():
        found = scores[device].predictions
        assert of_device.images == len(found)
        assert of_device.exit.confusion is None
        for index, of_class in enumerate(of_device.adaptive.classes):
            hits = int(((found.labels == index) & (found.adaptive == index)).sum())
            images, predicted = int((found.labels == index).sum()), int((found.adaptive == index).sum())
            assert (of_class.recall.images, of_class.precision.images) == (images, predicted)
            assert of_class.recall.share == pytest.approx(hits / images, abs=1e-6)
            assert of_class.precision.interval == pytest.approx(wilson(hits, predicted), abs=1e-6)
    fleet = report.fleet
    assert fleet.images == 70
    assert np.sum(fleet.trunk.confusion) == 70
    assert np.trace(fleet.trunk.confusion) == round((fleet.trunk.accuracy.share or 0) * 70)


def test_evaluation_file_report_and_metrics_of_a_run_agree(tmp_path: Path) -> None:
    fleet = VirtualFleet(tmp_path, "pi-1", "pi-2")
    report = fleet.run()
    written = msgspec.json.decode((tmp_path / EVALUATION).read_bytes(), type=ClassReport)
    assert (written.round, written.class_names, sorted(written.devices)) == (2, CLASSES, ["pi-1", "pi-2"])
    metrics = fleet.metrics[-1]
    assert written.fleet.images == metrics.fleet.images == report["fleet"]["images"] == 8
    assert [found.name for found in metrics.fleet.class_recalls] == [
        found.name for found in written.fleet.adaptive.classes if found.recall.images
    ]
    for device in report["devices"]:
        values = metrics.devices[device["id"]]
        assert device["held_out_samples"] == values.held_out_samples == 4
        assert device["trunk_interval"] == share_interval(device["trunk_accuracy"], 4)
        assert device["weakest_class"]["name"] in CLASSES
        assert (device["threshold"], device["threshold_images"]) == (0.5, 0)
