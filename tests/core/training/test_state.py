# SPDX-License-Identifier: Apache-2.0
"""A state on a disk that fills up, and the search for values in it that are not finite."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from file_limit import room_for

from splitee.durable import StateDirectory
from splitee.errors import StateError
from splitee.training.state import first_not_finite, state_writer, unpack_state


def test_full_disk_keeps_the_state_before_and_is_reported_in_one_line(tmp_path: Path) -> None:
    directory = StateDirectory(tmp_path)
    directory.save_round(1, state_writer({"weights": torch.ones(3)}))
    with (
        room_for(3 << 20),
        pytest.raises(StateError, match=r"cannot write .*round-000001\.state: File too"),
    ):
        directory.save_round(1, state_writer({"weights": torch.zeros(2 << 20)}))
    kept = directory.load_round(1)
    assert kept is not None
    assert unpack_state(kept)["weights"].tolist() == [1, 1, 1]
    assert not list(tmp_path.glob(".*.new"))
    directory.close()


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
