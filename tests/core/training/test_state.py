# SPDX-License-Identifier: Apache-2.0
"""The search for values that are not finite in a state."""

from __future__ import annotations

import math

import pytest
import torch

from splitee.training.state import first_not_finite


def soft_labels(images: int) -> dict[str, dict[str, torch.Tensor]]:
    """Those of one device, as a commit has them: their sum is the number of images."""
    return {"pi": {"probabilities": torch.full((images, 2), 0.5, dtype=torch.float16)}}


def test_soft_labels_of_more_images_than_float16_can_count_are_finite() -> None:
    assert first_not_finite({"soft_labels": soft_labels(70_000)}) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_value_that_is_not_finite_is_found_by_its_path(value: float) -> None:
    state = soft_labels(70_000)
    state["pi"]["probabilities"][69_999, 1] = value
    assert first_not_finite({"soft_labels": state}) == "soft_labels/pi/probabilities"
