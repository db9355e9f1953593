# SPDX-License-Identifier: Apache-2.0
"""torchvision's data sets: where each of them has its labels."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_folders import write_photographs

from splitee.errors import DataError
from splitee_device.data.images import open_data
from splitee_device.data.sources import open_source

SHAPE = (1, 6, 6)


def write_caltech(root: Path) -> Path:
    """Two classes of 5 images; returns the file of image 6."""
    folder = root / "caltech256" / "256_ObjectCategories"
    write_photographs(folder, {"001.ant": 5, "002.bonsai": 5})
    for file in sorted(folder.rglob("*.jpg")):
        file.rename(file.with_name(f"{file.parent.name[:3]}_{int(file.stem) + 1:04}.jpg"))
    return folder / "002.bonsai" / "002_0002.jpg"


def write_imagenette(root: Path) -> Path:
    """Two classes of 5 images; returns the file of image 6."""
    for split in ("train", "val"):
        write_photographs(root / "imagenette2" / split, {"n01440764": 5, "n02102040": 5})
    for file in root.rglob("*.jpg"):
        file.rename(file.with_suffix(".jpeg"))
    return root / "imagenette2" / "train" / "n02102040" / "001.jpeg"


def write_inaturalist(root: Path) -> Path:
    """Two classes of 5 images; returns the file of an image."""
    for number, species in enumerate(("ant", "bee")):
        name = f"{number:05}_Animalia_Arthropoda_Insecta_Hymenoptera_Family_Genus_{species}"
        write_photographs(root / "2021_train", {name: 5})
    return next(root.rglob("*_bee")) / "001.jpg"


@pytest.mark.parametrize(("name", "write"), [("Caltech256", write_caltech), ("Imagenette", write_imagenette)])
def test_listed_labels_are_read_without_images_and_a_broken_image_is_skipped(
    tmp_path: Path, name: str, write: Callable[[Path], Path]
) -> None:
    write(tmp_path).write_bytes(b"broken")
    assert open_source(f"torchvision:{name}:{tmp_path}").train.labels.tolist() == [0] * 5 + [1] * 5
    data = open_data(f"torchvision:{name}:{tmp_path}", input_shape=SHAPE)
    assert data.skipped == (f"{name} training image 6",)


def test_labels_that_come_only_with_their_images_are_read_with_them(tmp_path: Path) -> None:
    one = write_inaturalist(tmp_path)
    data = open_data(f"torchvision:INaturalist:{tmp_path}", input_shape=SHAPE)
    assert np.bincount(data.train.labels).tolist() == [4, 4]
    one.write_bytes(b"broken")
    with pytest.raises(DataError) as refused:
        open_source(f"torchvision:INaturalist:{tmp_path}")
    assert re.match(r"INaturalist training image \d cannot be read, nor its label: ", str(refused.value))


def test_class_that_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="torchvision has no data set 'VisionDataset'"):
        open_source(f"torchvision:VisionDataset:{tmp_path}")
