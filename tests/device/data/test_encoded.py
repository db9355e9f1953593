# SPDX-License-Identifier: Apache-2.0
"""Images that stay encoded: they give the same batches as images in memory, and replace lost ones."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from image_folders import png, write_folder, write_parquet, write_photographs

from splitee.errors import DataError
from splitee_device.data.encoded import EncodedImages
from splitee_device.data.image_sets import ImageSet
from splitee_device.data.images import DeviceData, open_data
from splitee_device.data.storage import Storage, most_for_images

SHAPE = (3, 24, 32)
GREY = (1, 6, 6)
COUNTS = {"a": 20, "b": 12}


@pytest.fixture(params=["folder", "parquet", "torchvision"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        write_photographs(tmp_path / "data", COUNTS)
        return str(tmp_path / "data")
    if request.param == "parquet":
        labels = np.repeat([0, 1], [20, 12])[np.random.default_rng(0).permutation(32)].tolist()
        write_parquet(tmp_path / "data.parquet", [png(n) for n in range(32)], labels)
        return str(tmp_path / "data.parquet")
    for split in ("train", "test"):
        write_folder(tmp_path / "country211" / split, COUNTS)
    return f"torchvision:Country211:{tmp_path}"


def encoded(
    source: str, workers: int = 1, *, shape: tuple[int, int, int] = SHAPE, most: int = 0
) -> DeviceData:
    return open_data(source, input_shape=shape, storage=Storage(most, workers))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_encoded_images_give_the_same_batches_as_images_in_memory(source: str, workers: int) -> None:
    memory, disk = open_data(source, input_shape=SHAPE), encoded(source, workers)
    generator = np.random.default_rng(1)
    for there, here in ((memory.train, disk.train), (memory.held_out, disk.held_out)):
        assert isinstance(there, ImageSet)
        assert isinstance(here, EncodedImages)
        assert np.array_equal(here.labels, there.labels)
        assert [here.name(i) for i in range(len(here))] == [there.name(i) for i in range(len(there))]
        order = [generator.permutation(len(there))[:size] for size in (5, 1, 3, 4)]
        for numbers, (found, pixels) in zip(order, here.batches(order), strict=True):
            assert np.array_equal(found, numbers)
            assert np.array_equal(pixels, there.take(numbers))


def test_images_that_fit_in_memory_are_decoded_at_once(source: str) -> None:
    every = len(open_data(source, input_shape=GREY).train) + len(open_data(source, input_shape=GREY).held_out)
    assert isinstance(encoded(source, shape=GREY, most=every * 36).train, ImageSet)
    assert isinstance(encoded(source, shape=GREY, most=every * 36 - 1).train, EncodedImages)


def test_exactly_one_batch_is_decoded_ahead(tmp_path: Path) -> None:
    write_folder(tmp_path, COUNTS)
    requested = []

    def order() -> Iterator[np.ndarray]:
        for number in range(10):
            requested.append(number)
            yield np.array([number])

    batches = encoded(str(tmp_path), shape=GREY).train.batches(order())
    assert len(list(islice(batches, 4))) == 4
    assert requested == [0, 1, 2, 3, 4]
    batches.close()  # type: ignore[attr-defined]


def test_unreadable_images_are_skipped_as_for_images_in_memory(
    source: str, caplog: pytest.LogCaptureFixture
) -> None:
    if source.endswith(".parquet"):
        write_parquet(
            Path(source), [png(n) if n not in (3, 9) else b"broken" for n in range(32)], [0, 1] * 16
        )
    else:
        root = Path(source.rpartition(":")[2])
        for path in sorted(root.rglob("a/*"))[2:4]:
            path.write_bytes(path.read_bytes()[:30])
    memory = open_data(source, input_shape=SHAPE)
    before = [line for line in caplog.messages if "unreadable" in line]
    caplog.clear()
    disk = encoded(source, 2)
    assert sorted(disk.skipped) == sorted(memory.skipped)
    assert len(disk.skipped) == 2
    assert [line for line in caplog.messages if "unreadable" in line] == before
    for there, here in ((memory.train, disk.train), (memory.held_out, disk.held_out)):
        assert np.array_equal(here.in_memory().images, there.in_memory().images)
        assert np.array_equal(here.labels, there.labels)


def test_missing_image_is_replaced_by_the_preceding_one_in_its_batch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_folder(tmp_path, {"a": 20, "b": 20})
    data = encoded(str(tmp_path), 2, shape=GREY)
    numbers = np.array([7, 30, 2, 11, 4])
    for gone in (7, 2, 11):
        Path(data.train.name(gone)).unlink()
    with caplog.at_level(logging.WARNING):
        found, pixels = next(iter(data.train.batches([numbers])))
        again, _ = data.train.read(numbers)
    assert found.tolist() == again.tolist() == [30, 30, 30, 30, 4]
    greys = [int(Path(data.train.name(int(number))).stem) for number in found]
    assert pixels[:, 0, 0, 0].tolist() == greys
    first, second = caplog.messages  # the third loss is not logged, a fourth would be
    assert "cannot be read any more, which makes 1 of 36 images" in first
    assert "which makes 2 of 36 images" in second


def test_batch_of_missing_images_is_filled_with_the_next_image(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": 20, "b": 20})
    train = encoded(str(tmp_path), shape=GREY).train
    for gone in (34, 35, 0):
        Path(train.name(gone)).unlink()
    found, pixels = next(iter(train.batches([np.array([34, 35, 34])])))
    assert found.tolist() == [1, 1, 1]
    assert pixels[:, 0, 0, 0].tolist() == [int(Path(train.name(1)).stem)] * 3


def test_error_is_raised_if_all_images_are_gone(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": 20, "b": 20})
    data = encoded(str(tmp_path), shape=GREY)
    for path in tmp_path.glob("*/*"):
        path.unlink()
    with pytest.raises(DataError, match="neither it nor the 64 images after it can be read any more"):
        next(iter(data.train.batches([np.array([3, 4])])))


def test_parquet_images_without_a_storage_folder_raise_an_error(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", [png(n) for n in range(20)], [0, 1] * 10)
    with pytest.raises(DataError, match=r"no room to keep the encoded images in .*gone"):
        open_data(
            str(tmp_path / "x.parquet"), input_shape=SHAPE, storage=Storage(0, folder=tmp_path / "gone")
        )


def test_tick_is_called_while_images_are_read(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": 20, "b": 60})
    for most in (0, 1 << 20):
        ticks: list[int] = []
        open_data(str(tmp_path), input_shape=GREY, storage=Storage(most), tick=lambda t=ticks: t.append(1))
        assert len(ticks) >= 2


def test_decoded_images_may_use_a_quarter_of_the_allowed_memory() -> None:
    assert most_for_images(64 << 20) == 16 << 20
    assert most_for_images(None) > most_for_images(1 << 20)
