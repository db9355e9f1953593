# SPDX-License-Identifier: Apache-2.0
"""The order of images for labelling: the most unlike first, and several orders in turn."""

from __future__ import annotations

import numpy as np

from splitee.inference.uncertainty import Array
from splitee_device.labelling.choice import interleave, k_centre

NONE = np.zeros((0, 2), np.float32)


def clusters(*sizes: int) -> Array:
    """Clusters of points around places on a circle."""
    random = np.random.default_rng(0)
    angles = np.repeat(np.arange(len(sizes)) * 2 * np.pi / len(sizes), sizes)
    centres = np.stack([np.cos(angles), np.sin(angles)], 1)
    return (10 * centres + random.normal(0, 0.01, centres.shape)).astype(np.float32)


def test_k_centre_visits_each_cluster_before_any_twice() -> None:
    order = k_centre(clusters(50, 1, 20, 1, 30), NONE)
    cluster = np.repeat(np.arange(5), (50, 1, 20, 1, 30))[order]
    assert sorted(cluster[:5]) == [0, 1, 2, 3, 4]
    assert sorted(order) == list(range(102))


def test_k_centre_starts_in_the_cluster_without_labels() -> None:
    points = clusters(10, 10, 10)
    order = k_centre(points, points[[0, 10]])
    assert order[0] >= 20


def test_k_centre_lists_each_of_several_identical_images_once() -> None:
    assert sorted(k_centre(np.ones((600, 2), np.float32), NONE)) == list(range(600))
    assert len(k_centre(NONE, NONE)) == 0


def test_orders_in_turn_name_each_image_once() -> None:
    assert interleave(["a", "b", "c"], ["c", "a"], []) == ["a", "c", "b"]
