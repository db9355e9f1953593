# SPDX-License-Identifier: Apache-2.0
"""The mistakes that a device keeps for its owner: the most confident ones, each image once."""

from __future__ import annotations

import numpy as np
import pytest

from splitee_device.training.mistakes import KEPT, Mistakes


def note(mistakes: Mistakes, numbers: list[int], labels: list[int], logits: list[list[float]]) -> None:
    scores = np.array(logits, np.float32)
    mistakes.note(np.array(numbers), np.array(labels), scores.argmax(axis=1), scores)


def test_mistakes_are_listed_by_confidence_without_right_predictions() -> None:
    mistakes = Mistakes()
    note(mistakes, [4, 5, 6], [0, 0, 1], [[1, 2, 0], [9, 0, 0], [0, 0, 5]])
    found = mistakes.as_json("image {}.jpg".format, ("can", "glass"))["mistakes"]
    assert [(one["image"], one["class"], one["predicted"]) for one in found] == [
        ("image 6.jpg", "glass", "2"),
        ("image 4.jpg", "can", "glass"),
    ]
    assert found[1]["probability"] == pytest.approx(np.exp(2) / np.exp([1, 2, 0]).sum(), abs=1e-4)


def test_mistakes_are_limited_in_number_and_each_image_is_kept_once() -> None:
    mistakes = Mistakes()
    for first in (0, 20):
        numbers = list(range(first, first + 20))
        note(mistakes, numbers, [0] * 20, [[0, number] for number in numbers])
    note(mistakes, list(range(35, 40)), [0] * 5, [[0, number] for number in range(35, 40)])
    found = mistakes.as_json(str, ("a", "b"))["mistakes"]
    assert [one["image"] for one in found] == [str(number) for number in range(39, 39 - KEPT, -1)]


def test_mistake_with_huge_logits_has_probability_one() -> None:
    mistakes = Mistakes()
    note(mistakes, [0], [0], [[-1e30, 1e30]])
    assert mistakes.as_json(str, ("a", "b"))["mistakes"][0]["probability"] == 1.0
