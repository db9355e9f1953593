# SPDX-License-Identifier: Apache-2.0
"""Features by the contents of files: computed once, kept over restarts, none for other files than images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from labels import write_images, write_model

from splitee.inference.uncertainty import Array
from splitee.samples.fitting import Pixels
from splitee_device.labelling import kept_features
from splitee_device.labelling.extractor import Extractor, open_extractor, pool
from splitee_device.labelling.kept_features import KeptFeatures


class Counting(Extractor):
    """An extractor that counts the images of which it computes features."""

    computed = 0

    def __call__(self, images: Pixels) -> tuple[Array, Array]:
        self.computed += len(images)
        return super().__call__(images)


def test_features_are_computed_once_for_the_same_bytes_across_restarts(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "images", 20)
    extractor = Counting()
    kept = KeptFeatures(tmp_path, extractor)
    before = [row for _, row in kept.of(paths)]
    moved = [path.rename(tmp_path / path.name) for path in paths]
    again = [row for _, row in kept.of(moved)]
    assert extractor.computed == 20
    assert all(one is not None and one is other for one, other in zip(before, again, strict=True))
    kept.save()
    other = KeptFeatures(tmp_path, extractor)
    for row, (_, loaded) in zip(before, other.of(moved), strict=True):
        assert row is not None and loaded is not None
        np.testing.assert_array_equal(row[0], loaded[0])
    assert extractor.computed == 20


def test_oldest_features_are_forgotten_when_there_are_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images come for as long as a page is open."""
    monkeypatch.setattr(kept_features, "MOST", 15)
    paths = write_images(tmp_path / "images", 20)
    extractor = Counting()
    kept = KeptFeatures(tmp_path, extractor)
    list(kept.of(paths))
    kept.save()
    list(kept.of(paths[5:]))
    assert extractor.computed == 20
    list(kept.of(paths[:5]))
    assert extractor.computed == 25


@pytest.mark.parametrize("damaged", [b"", b"PK\x03\x04", b"no archive"])
def test_features_are_computed_again_if_their_file_is_damaged(tmp_path: Path, damaged: bytes) -> None:
    paths = write_images(tmp_path / "images", 3)
    kept = KeptFeatures(tmp_path, Extractor())
    list(kept.of(paths))
    kept.save()
    [file] = tmp_path.glob("features-*.npz")
    file.write_bytes(damaged)
    extractor = Counting()
    assert all(row is not None for _, row in KeptFeatures(tmp_path, extractor).of(paths))
    assert extractor.computed == 3


def test_files_that_are_no_images_have_no_features(tmp_path: Path) -> None:
    [image] = write_images(tmp_path, 1)
    broken = tmp_path / "broken.png"
    broken.write_bytes(image.read_bytes()[:40])
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "link.png").symlink_to(image)
    paths = [image, broken, tmp_path / "fifo.png", tmp_path / "link.png", tmp_path / "absent.png"]
    rows = [row for _, row in KeptFeatures(tmp_path, Extractor()).of(paths)]
    assert [row is not None for row in rows] == [True, False, False, False, False]


def test_extractor_of_a_model_has_its_own_identity_and_feature_shapes(tmp_path: Path) -> None:
    extractor = open_extractor(write_model(tmp_path / "model"), None, 1)
    assert extractor.class_names == ("a", "b")
    assert extractor.identity != Extractor().identity
    [(_, row)] = KeptFeatures(tmp_path, extractor).of(write_images(tmp_path / "images", 1))
    assert row is not None
    assert (row[0].shape, row[1].shape) == ((4,), (2,))


def test_pooled_features_match_the_means_of_an_exit_head() -> None:
    """As torch computes them for maps, and for token sequences whose channels are last."""
    import torch

    from splitee.networks.exits import ExitHead

    for shape, axis in (((3, 5, 4), 0), ((7, 6), 1), ((9,), 0)):
        features = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
        expected = ExitHead(shape, 2, channel_axis=axis)._means(torch.from_numpy(features))
        np.testing.assert_allclose(pool(features), expected.numpy(), atol=1e-6)
