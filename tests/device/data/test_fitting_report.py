# SPDX-License-Identifier: Apache-2.0
"""A device logs how it fits its images when it opens them, and warns if it enlarges them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from PIL import Image

from splitee.protocol.fields import Fit
from splitee.samples.fitting import Region
from splitee_device.data.images import open_data

SPREAD = {"a": (128, 96), "b": (128, 96), "c": (64, 48)}


@pytest.fixture
def logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    for name, size in SPREAD.items():
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.new("RGB", size, (60 * number, 100 * len(list(tmp_path.iterdir())), 0)).save(
                tmp_path / name / f"{number}.jpg"
            )
    (tmp_path / "a" / "broken.jpg").write_bytes(b"no image")
    caplog.set_level(logging.INFO, "splitee_device")
    return caplog


def lines(logged: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in logged.records if record.levelno == level]


@pytest.mark.parametrize(
    ("fit", "shape", "region", "words"),
    [
        ("crop", (3, 48, 48), None, "are cropped to 48 x 48"),
        ("pad", (3, 48, 48), None, "are set between grey margins in 48 x 48"),
        (
            "stretch",
            (3, 48, 64),
            Region(0, 0, 64, 40),
            "are cut to the region 0,0,64,40, then stretched to 64 x 48",
        ),
        ("crop", (3, 48, 64), None, "are scaled to 64 x 48"),
        ("crop", (1, 96, 128), None, "are taken as they are, at 128 x 96"),
    ],
)
def test_commonest_image_size_and_its_fitting_are_logged(
    logged: pytest.LogCaptureFixture,
    tmp_path: Path,
    fit: Fit,
    shape: tuple[int, int, int],
    region: Region | None,
    words: str,
) -> None:
    open_data(str(tmp_path), input_shape=shape, fit=fit, region=region)
    expected = f"{tmp_path}: images of 128 x 96 (6 of 9 checked, others 64 x 48) {words}"
    assert expected in lines(logged, logging.INFO)
    assert not [line for line in lines(logged, logging.WARNING) if "enlarged" in line]


@pytest.mark.parametrize(
    ("fit", "shape", "region", "words"),
    [
        (
            "crop",
            (3, 288, 384),
            None,
            "128 x 96 is enlarged to 384 x 288: the server's --input 3x96x128 would cost 1/9",
        ),
        (
            "crop",
            (3, 96, 96),
            Region(9, 9, 32, 40),
            "32 x 40 is enlarged to 96 x 96: the server's --input 3x32x32 would cost 1/9",
        ),
        (
            "pad",
            (1, 256, 256),
            None,
            "128 x 96 is enlarged to 256 x 256: the server's --input 1x128x128 would cost 1/4",
        ),
    ],
)
def test_enlarged_images_are_logged_as_a_warning_with_a_smaller_input(
    logged: pytest.LogCaptureFixture,
    tmp_path: Path,
    fit: Fit,
    shape: tuple[int, int, int],
    region: Region | None,
    words: str,
) -> None:
    open_data(str(tmp_path), input_shape=shape, fit=fit, region=region)
    assert f"{tmp_path}: {words}" in lines(logged, logging.WARNING)


def test_image_sizes_are_sampled_from_200_images(tmp_path: Path, logged: pytest.LogCaptureFixture) -> None:
    open_data("builtin:fashion-mnist", input_shape=(3, 32, 32), limit=1000)
    assert "builtin:fashion-mnist: images of 28 x 28 (200 of 200 checked) are scaled to 32 x 32" in lines(
        logged, logging.INFO
    )
