# SPDX-License-Identifier: Apache-2.0
"""Totals of many predictions, and the class that a folder gives its images."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitee.inference.predictor import Prediction, Source
from splitee_device.inference.tally import Tally, class_of


def prediction(label: str, source: Source = "exit") -> Prediction:
    return Prediction(label, 0.9, 0.1, source, 1.0)


def test_tally_counts_classes_offloaded_share_and_accuracy() -> None:
    tally = Tally()
    tally.add(prediction("cat"), "cat")
    tally.add(prediction("cat", "trunk"), "dog")
    tally.add(prediction("dog", "local-fallback"), "dog")
    tally.add(prediction("cat"))
    assert list(tally.lines()) == [
        "4 images: cat 3, dog 1",
        "offloaded: 2 (50.0%), 1 of them without the server's prediction",
        "right, where the folder is a class: 2 of 3 (66.7%; 95 % interval 20.8% to 93.9%)",
    ]


def test_tally_omits_offload_and_accuracy_lines_without_data() -> None:
    tally = Tally()
    tally.add(prediction("cat"))
    assert list(tally.lines()) == ["1 images: cat 1"]


@pytest.mark.parametrize(
    ("file", "root", "expected"),
    [
        ("test/cat/1.jpg", "test", "cat"),
        ("test/cat/1.jpg", "test/cat", "cat"),
        ("test/cat/night/1.jpg", "test", "cat"),
        ("cat/dog/1.jpg", "cat", "dog"),
        ("test/1.jpg", "test", None),
        ("cat/1.jpg", "cat/1.jpg", None),  # a file that was named by itself
    ],
)
def test_innermost_folder_named_like_a_class_gives_the_class(
    file: str, root: str, expected: str | None
) -> None:
    assert class_of(Path(file), Path(root), ("cat", "dog")) == expected
