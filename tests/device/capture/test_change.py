# SPDX-License-Identifier: Apache-2.0
"""Whether an image has changed, before any model runs: noise is no change, an object that moves is one."""

from __future__ import annotations

import numpy as np
import pytest

from splitee.samples.fitting import Pixels
from splitee_device.capture.change import CELLS, ChangeFilter, grid

GENERATOR = np.random.default_rng(0)
SHARE = 0.01


def scene(object_at: int | None = None, *, noise: float = 5.0, side: int = 96) -> Pixels:
    """A grey gradient with sensor noise of `noise` of 255 values, and an object of a sixth of its width."""
    image = np.tile(np.linspace(60, 180, side), (3, side, 1))
    if object_at is not None:
        image[:, side // 3 : side // 2, object_at : object_at + side // 6] = 230
    image += GENERATOR.normal(0, noise, image.shape)
    return image.clip(0, 255).astype(np.uint8)


def test_noise_is_not_a_change() -> None:
    change = ChangeFilter(SHARE)
    assert [change.passes(scene(20)) for _ in range(50)] == [True] + [False] * 49


def test_object_that_moves_appears_or_disappears_is_a_change() -> None:
    change = ChangeFilter(SHARE)
    places = (None, 20, 60, 60, None, None)
    assert [change.passes(scene(place)) for place in places] == [True, True, True, False, True, False]


def test_slow_changes_are_compared_with_the_last_passed_image() -> None:
    change = ChangeFilter(SHARE)
    passed = sum(change.passes(np.full((3, 96, 96), level, np.uint8)) for level in range(60))
    assert passed == 60 // 3, "2.55 of 255 values are the share: every third value is above it"


def test_grid_holds_the_mean_of_each_cell_for_any_shape() -> None:
    image = scene()
    cells = image.reshape(3, CELLS, 3, CELLS, 3).mean((0, 2, 4))
    np.testing.assert_allclose(grid(image), cells, atol=1e-3)
    for shape in ((1, 28, 28), (3, 224, 100)):
        assert grid(np.full(shape, 7, np.uint8)) == pytest.approx(7)


def test_share_of_0_passes_any_change_and_a_share_of_1_not_even_a_full_one() -> None:
    black, white = (np.full((1, CELLS, CELLS), level, np.uint8) for level in (0, 255))
    other = black.copy()
    other[0, 0, 0] = 1  # the least change that there is
    for share, image, passes in (
        (0, black, False),
        (0, other, True),
        (1, white, False),
        (0.999, white, True),
    ):
        change = ChangeFilter(share)
        assert change.passes(black)
        assert change.passes(image) is passes, share
