# SPDX-License-Identifier: Apache-2.0
"""A device's images: how each source is read and divided, and errors for bad input."""

from __future__ import annotations

import gzip
import io
import logging
import os
import shutil
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from image_folders import png, write_folder, write_parquet
from msgspec.structs import replace
from PIL import Image
from trained import Trained

from splitee.errors import ConfigError, DataError
from splitee.inference.manifest import ClientManifest, read_manifest
from splitee.protocol.fields import Fit
from splitee.samples.fitting import Region
from splitee.samples.images import load_image, normalize
from splitee_device.data.batches import batch
from splitee_device.data.folder import fingerprint
from splitee_device.data.image_sets import ImageSet
from splitee_device.data.images import DeviceData, Shard, open_data

SHAPE = (1, 6, 6)
BUILTIN = Path(__file__).parents[3] / "device/splitee_device/data/builtin/fashion-mnist.npz"
SCRIPT = Path(__file__).parents[3] / "scripts/make_fashion_mnist.py"


def write_idx(path: Path, values: np.ndarray, opener: Callable[..., io.BufferedIOBase] = io.open) -> None:
    with opener(path, "wb") as file:
        file.write(struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes())


def numbers(image_set: ImageSet) -> list[int]:
    return [int(grey) for grey in image_set.images[:, 0, 0, 0]]


@pytest.fixture(params=["folder", "parquet"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """100 numbered images of three unequal classes: a 0..49, b 50..79, c 80..99."""
    if request.param == "folder":
        write_folder(tmp_path / "data", {"a": 50, "b": 30, "c": 20})
        return str(tmp_path / "data")
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    order = np.random.default_rng(0).permutation(100).tolist()
    write_parquet(tmp_path / "data.parquet", [png(n) for n in order], labels[order].tolist(), ["a", "b", "c"])
    return str(tmp_path / "data.parquet")


def shards(spec: str, count: int) -> list[DeviceData]:
    return [open_data(spec, input_shape=SHAPE, shard=Shard(k + 1, count), seed=5) for k in range(count)]


# --- what is read


def test_every_image_has_its_label(source: str) -> None:
    data = open_data(source, input_shape=SHAPE)
    assert data.class_names == ("a", "b", "c")
    assert data.skipped == ()
    for image_set in (data.train, data.held_out):
        expected = np.digitize(numbers(image_set), [50, 80])
        assert image_set.labels.tolist() == expected.tolist()
    assert sorted(numbers(data.train) + numbers(data.held_out)) == list(range(100))


def test_held_out_share_is_taken_from_each_class(source: str) -> None:
    data = open_data(source, input_shape=SHAPE, holdout=0.2)
    assert np.bincount(data.held_out.labels).tolist() == [10, 6, 4]
    assert np.bincount(data.train.labels).tolist() == [40, 24, 16]


@pytest.mark.parametrize("region", [None, Region(300, 40, 700, 500)])
@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_training_and_inference_see_the_same_pixels(
    tmp_path: Path, trained: Trained, fit: Fit, region: Region | None
) -> None:
    """Of JPEG files that are large enough to be decoded at a fraction of their size, rotated or not."""
    generator = np.random.default_rng(3)
    exif = Image.Exif()
    for name, exif[0x0112] in (("a", 1), ("b", 8)):
        (tmp_path / name).mkdir()
        pixels = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        size = (1200, 800) if name == "a" else (800, 1200)
        Image.fromarray(pixels).resize(size).save(tmp_path / name / "0.jpg", exif=exif)
        shutil.copy(tmp_path / name / "0.jpg", tmp_path / name / "1.jpg")
    data = open_data(str(tmp_path), input_shape=(3, 48, 32), fit=fit, region=region, holdout=0.5)
    model = read_manifest(trained.model("pi-1"), ClientManifest)
    seen = replace(model, input_shape=(3, 48, 32), fit=fit).preparation(region)
    for of_data in (data.train, data.held_out):
        assert np.array_equal(of_data.images, [load_image(tmp_path / n / "0.jpg", seen) for n in ("a", "b")])


def test_batch_is_normalised_as_for_inference(source: str) -> None:
    train = open_data(source, input_shape=SHAPE).train
    indices = np.array([5, 1, 1])
    images, labels = batch(train, indices, [0.4], [0.3])
    assert torch.equal(images, torch.from_numpy(normalize(train.images[indices], [0.4], [0.3])))
    assert images.dtype == torch.float32
    assert torch.equal(labels, torch.from_numpy(train.labels)[[5, 1, 1]])
    assert labels.dtype == torch.int64


def test_other_files_and_hidden_folders_are_ignored(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": 4, "b": 4})
    (tmp_path / "notes.txt").write_text("not a class")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "a" / "Thumbs.db").write_text("not an image")
    data = open_data(str(tmp_path), input_shape=SHAPE)
    assert data.class_names == ("a", "b")
    assert len(data.train) + len(data.held_out) == 8


def test_irregular_files_are_skipped_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(tmp_path, {"a": 4, "b": 4})
    os.mkfifo(tmp_path / "a" / "fifo.jpg")
    (tmp_path / "b" / "zero.png").symlink_to("/dev/zero")
    data = open_data(str(tmp_path), input_shape=SHAPE)
    names = sorted(Path(name).name for name in data.skipped)
    assert names == ["fifo.jpg", "zero.png"]
    assert "skipped 2 unreadable of 10 images" in caplog.text


def test_classes_of_parquet_without_class_names_are_numbered(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", [png(n) for n in range(9)], [0, 1, 2] * 3)
    assert open_data(str(tmp_path / "x.parquet"), input_shape=SHAPE).class_names == ("0", "1", "2")


# --- how it is divided


@pytest.mark.parametrize("count", [2, 3, 7])
def test_shards_are_balanced_and_disjoint(source: str, count: int) -> None:
    whole = open_data(source, input_shape=SHAPE, seed=5)
    parts = shards(source, count)
    assert sorted(n for part in parts for n in numbers(part.train)) == sorted(numbers(whole.train))
    for label in range(3):
        of_class = [int(np.sum(part.train.labels == label)) for part in parts]
        assert max(of_class) - min(of_class) <= 1
    sizes = [len(part.train) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    for part in parts:
        assert numbers(part.held_out) == numbers(whole.held_out)


def test_seed_determines_the_division(source: str) -> None:
    first, again, other = (
        open_data(source, input_shape=SHAPE, shard=Shard(1, 3), seed=seed) for seed in (1, 1, 2)
    )
    assert numbers(first.train) == numbers(again.train)
    assert numbers(first.train) != numbers(other.train)
    assert numbers(first.held_out) != numbers(other.held_out)


def test_limit_keeps_the_class_proportions(source: str) -> None:
    data = open_data(source, input_shape=SHAPE, limit=20, holdout=0.4)
    assert np.bincount(data.train.labels).tolist() == [10, 6, 4]
    assert np.bincount(data.held_out.labels).tolist() == [10, 6, 4]


def test_only_images_of_the_shard_are_decoded(source: str, tmp_path: Path) -> None:
    """Every other image is broken: each shard skips its own broken images and no other shard's."""
    if source.endswith(".parquet"):
        labels = pq.read_table(source).column("label").to_numpy().tolist()
        write_parquet(Path(source), [png(n) if n % 2 else b"broken" for n in range(100)], labels)
    else:
        for path in sorted(Path(source).glob("*/*.png"))[::2]:
            path.write_bytes(b"broken")
    parts = shards(source, 3)
    held_out = set.intersection(*(set(part.skipped) for part in parts))
    of_shards = [name for part in parts for name in part.skipped if name not in held_out]
    assert len(of_shards) == len(set(of_shards))
    assert len(of_shards) + len(held_out) == 50


@pytest.mark.parametrize("text", ["", "2", "0/3", "4/3", "1/0", "-1/3", "a/b", "1/3/5", "1/3 ", "1/9999999"])
def test_malformed_shard_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a shard as K/N"):
        Shard.parse(text)


def test_shard_is_parsed() -> None:
    assert Shard.parse("2/3") == Shard(2, 3)


# --- what ships with the project


def test_builtin_data_set_is_balanced_and_small() -> None:
    data = open_data("builtin:fashion-mnist", input_shape=(1, 28, 28))
    assert np.bincount(data.train.labels).tolist() == [600] * 10
    assert np.bincount(data.held_out.labels).tolist() == [100] * 10
    assert len(data.class_names) == len(set(data.class_names)) == 10
    assert BUILTIN.stat().st_size <= 4_000_000


def test_builtin_shards_share_the_test_split() -> None:
    parts = [
        open_data("builtin:fashion-mnist", input_shape=(3, 32, 32), shard=Shard(k, 3)) for k in (1, 2, 3)
    ]
    for part in parts:
        assert np.bincount(part.train.labels).tolist() == [200] * 10
        assert np.array_equal(part.held_out.images, parts[0].held_out.images)
    assert len({image.tobytes() for part in parts for image in part.train.images}) == 6000


def test_script_makes_a_balanced_and_reproducible_file(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for prefix, count in (("train", 60), ("t10k", 40)):
        labels = generator.permutation(np.arange(count, dtype=np.uint8) % 10)
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        images[:, 0, 0] = labels
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", labels, gzip.open)
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", images, gzip.open)
    made = []
    for out in (tmp_path / "one.npz", tmp_path / "two.npz"):
        arguments = ["--source", str(tmp_path), "--out", str(out), "--train", "30", "--test", "20"]
        subprocess.run([sys.executable, str(SCRIPT), *arguments], check=True, capture_output=True)
        made.append(out.read_bytes())
    assert made[0] == made[1]
    with np.load(tmp_path / "one.npz") as arrays:
        for split, each in (("train", 3), ("test", 2)):
            labels = arrays[f"{split}_labels"]
            assert np.bincount(labels).tolist() == [each] * 10
            assert np.array_equal(arrays[f"{split}_images"][:, 0, 0], labels)


# --- torchvision


@pytest.fixture
def fashion_root(tmp_path: Path) -> Path:
    """FashionMNIST as torchvision stores it, with 40 training and 20 test images."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count, first in (("train", 40, 0), ("t10k", 20, 100)):
        images = np.full((count, 28, 28), np.arange(first, first + count, dtype=np.uint8)[:, None, None])
        write_idx(raw / f"{prefix}-images-idx3-ubyte", images)
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10)
    return tmp_path


def test_torchvision_set_with_a_train_flag_is_read(fashion_root: Path) -> None:
    data = open_data(f"torchvision:FashionMNIST:{fashion_root}", input_shape=SHAPE, shard=Shard(1, 2))
    assert data.class_names[9] == "Ankle boot"
    assert np.bincount(data.train.labels).tolist() == [2] * 10
    assert numbers(data.held_out) == list(range(100, 120))
    assert data.held_out.labels.tolist() == list(range(10)) * 2


def test_torchvision_set_with_named_splits_is_read(tmp_path: Path) -> None:
    for split, counts in (("train", {"AD": 4, "AE": 4}), ("test", {"AD": 2, "AE": 1})):
        write_folder(tmp_path / "country211" / split, counts)
    data = open_data(f"torchvision:Country211:{tmp_path}", input_shape=SHAPE)
    assert data.class_names == ("AD", "AE")
    assert numbers(data.train) == list(range(8))
    assert data.held_out.labels.tolist() == [0, 0, 1]


def test_torchvision_set_without_a_test_split_is_divided(tmp_path: Path) -> None:
    write_folder(tmp_path / "eurosat" / "2750", {"Forest": 10, "River": 10})
    data = open_data(f"torchvision:EuroSAT:{tmp_path}", input_shape=SHAPE)
    assert np.bincount(data.train.labels).tolist() == [9, 9]
    assert np.bincount(data.held_out.labels).tolist() == [1, 1]


def test_unreadable_torchvision_image_is_skipped(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_folder(tmp_path / "country211" / split, {"AD": 4, "AE": 4})
    (tmp_path / "country211" / "train" / "AE" / "005.png").write_bytes(b"broken")
    data = open_data(f"torchvision:Country211:{tmp_path}", input_shape=SHAPE)
    assert numbers(data.train) == [0, 1, 2, 3, 4, 6, 7]
    assert data.skipped == ("Country211 training image 5",)


# --- bad input: one line each


def refusal(spec: str | Path, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        open_data(str(spec), **{"input_shape": SHAPE, **settings})
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("nowhere", "no such folder or file"),
        ("builtin:mnist", "there is builtin:fashion-mnist"),
        ("torchvision:CIFAR10", "expected torchvision:NAME:ROOT"),
        ("torchvision:Cifar01:{}", "the nearest are CIFAR10"),
        ("torchvision:Zzzzzz:{}", "torchvision has no data set 'Zzzzzz'"),
        ("torchvision:CIFAR10:{}", "does not hold CIFAR10"),
        ("torchvision:Food101:{}", "does not hold Food101"),
        ("torchvision:CIFAR10:{}/gone", "is not a folder"),
        ("torchvision:EMNIST:{}", "leaves the choice of a training part open"),
        ("{}", "holds no class folders"),
        ("{}/" + 300 * "a", "cannot be read: File name too long"),
        ("~no-such-user/images", "the home directory of no known user"),
        ("torchvision:CIFAR10:~no-such-user", "the home directory of no known user"),
    ],
)
def test_missing_or_unusable_source_is_refused(spec: str, expected: str, tmp_path: Path) -> None:
    assert expected in refusal(spec.format(tmp_path))


@pytest.mark.parametrize("name", ["x" * 201, os.fsdecode(b"K\xe4fer")])
def test_class_that_no_message_can_name_is_refused(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path, {"a": 4, "b": 4, name: 4})
    assert "a class cannot be called" in refusal(tmp_path)


def test_more_classes_than_a_message_can_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.parquet"
    write_parquet(path, [png(0), png(1)], [0, 1], [str(number) for number in range(10_001)])
    assert "10001 classes; expected at most 10000" in refusal(path)


def test_file_whose_name_is_not_utf_8_is_an_image_like_others(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": 4, "b": 4})
    before = fingerprint(tmp_path)
    (tmp_path / "a" / os.fsdecode(b"K\xe4fer.png")).write_bytes(png(9))
    assert fingerprint(tmp_path) != before
    data = open_data(str(tmp_path), input_shape=SHAPE)
    assert len(data.train) + len(data.held_out) == 9


def test_link_to_itself_among_the_class_folders_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": 4, "b": 4})
    (tmp_path / "c").symlink_to("c")
    assert f"{tmp_path}/c: cannot be read: Too many levels of symbolic links" in refusal(tmp_path)
    with pytest.raises(DataError):
        fingerprint(tmp_path)


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": 0, "b": 0})
    assert "its 2 class folders hold no images" in refusal(tmp_path)


def test_folder_with_a_single_class_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, {"cats": 3, "dogs": 0})
    assert "all 3 images are of one class, 'cats'" in refusal(tmp_path)


def test_unreadable_images_are_skipped_and_logged_in_one_line(
    source: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    if source.endswith(".parquet"):
        images: list[bytes | None] = [png(n) for n in range(100)]
        images[3], images[50], images[99] = b"broken", None, b""
        write_parquet(Path(source), images, [0, 1] * 50)
        broken = [f"{source} row {row}" for row in (3, 50, 99)]
    else:
        broken = [f"{source}/a/000.png", f"{source}/a/001.png", f"{source}/c/099.png"]
        for name in broken:
            Path(name).write_bytes(png(1)[:40])
    with caplog.at_level(logging.WARNING):
        data = open_data(source, input_shape=SHAPE)
    assert sorted(data.skipped) == sorted(broken)
    assert len(data.train) + len(data.held_out) == 97
    (line,) = caplog.messages
    assert "skipped 3 unreadable of 100" in line
    assert all(name in line for name in broken)


def test_source_with_only_unreadable_images_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": 3, "b": 3})
    for path in tmp_path.glob("*/*.png"):
        path.write_bytes(b"broken")
    assert "none of its 6 images can be read" in refusal(tmp_path)


def test_single_image_per_class_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": 1, "b": 1})
    assert "to train on and one to hold out, got 2 and 0" in refusal(tmp_path)


def test_single_training_image_is_refused(source: str) -> None:
    assert "expected two images or more to train on" in refusal(source, limit=1)


def test_fewer_images_than_shards_are_refused(source: str) -> None:
    assert "90 training images cannot be shared by 91 shards" in refusal(source, shard=Shard(1, 91))


@pytest.mark.parametrize("settings", [{"holdout": 0.0}, {"holdout": 1.0}, {"limit": 0}])
def test_settings_out_of_range_are_refused(source: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        open_data(source, input_shape=SHAPE, **settings)


@pytest.mark.parametrize("label", [-1, 2, 2**62])
def test_parquet_label_out_of_range_is_refused(tmp_path: Path, label: int) -> None:
    write_parquet(tmp_path / "x.parquet", [png(n) for n in range(3)], [0, 1, label], ["a", "b"])
    assert f"image 2 has label {label}; expected 0..1" in refusal(tmp_path / "x.parquet")


@pytest.mark.parametrize("label", [2_000_000, 2**62])
def test_huge_parquet_label_without_class_names_is_refused_and_allocates_nothing(
    tmp_path: Path, label: int
) -> None:
    """A class for each number below it would be more than the memory."""
    write_parquet(tmp_path / "x.parquet", [png(0), png(1)], [0, label])
    tracemalloc.start()
    try:
        assert f"has label {label}" in refusal(tmp_path / "x.parquet")
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("names", ["a", [1, 2], {"a": 1}])
def test_parquet_with_malformed_class_names_is_refused(tmp_path: Path, names: object) -> None:
    write_parquet(tmp_path / "x.parquet", [png(0), png(1)], [0, 1], names)
    assert "not a JSON list of strings" in refusal(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"picture": [b""], "label": [1]}),
        pa.table({"image": [b""], "label": [1]}),
        pa.table({"image": [{"path": "x"}], "label": [1]}),
        pa.table({"image": [{"bytes": "text", "path": "x"}], "label": [1]}),
        pa.table({"image": [{"bytes": b"", "path": "x"}], "label": ["cat"]}),
        pa.table({"image": [{"bytes": b"", "path": "x"}]}),
    ],
)
def test_parquet_with_other_columns_is_refused(tmp_path: Path, table: pa.Table) -> None:
    pq.write_table(table, tmp_path / "x.parquet")
    assert "expected columns image: struct<bytes, path>" in refusal(tmp_path / "x.parquet")


def test_parquet_with_missing_labels_is_refused(tmp_path: Path) -> None:
    table = pa.table({"image": [{"bytes": png(0), "path": ""}] * 2, "label": [1, None]})
    pq.write_table(table, tmp_path / "x.parquet")
    assert "1 rows have no label" in refusal(tmp_path / "x.parquet")


@pytest.mark.parametrize("keep", [0, 10, -10])
def test_file_that_is_not_parquet_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "x.parquet"
    write_parquet(path, [png(0), png(1)], [0, 1])
    path.write_bytes(path.read_bytes()[:keep])
    assert "cannot be read as a Parquet file" in refusal(path)
