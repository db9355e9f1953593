# SPDX-License-Identifier: Apache-2.0
"""Images that come into a folder and go from it while a device takes part."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import pytest
from image_folders import png, write_folder

from splitee_device.data.device_images import DeviceImages
from splitee_device.data.division import FILE, Division, keep_division, read_division
from splitee_device.data.images import DeviceData, open_data

SHAPE = (1, 6, 6)
SHARE = 0.2


def opening(root: Path, division: Division | None, share: float = SHARE) -> DeviceData:
    return open_data(str(root), input_shape=SHAPE, holdout=share, division=division)


def images_of(root: Path) -> DeviceImages:
    return DeviceImages(partial(opening, root), None, (root,))


def division_of(images: DeviceImages) -> Division:
    assert images.data.division is not None
    return images.data.division


def add(root: Path, name: str, count: int, first: int = 100) -> set[str]:
    for number in range(first, first + count):
        (root / name / f"{number}.png").write_bytes(png(number))
    return {f"{name}/{number}.png" for number in range(first, first + count)}


def test_what_an_image_is_for_it_stays_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    write_folder(tmp_path, {"a": 20, "b": 10})
    images = images_of(tmp_path)
    before = division_of(images)
    assert (len(before.held_out), len(before.training)) == (6, 24)
    assert not images.look_again()

    new = add(tmp_path, "a", 10) | add(tmp_path, "b", 20)
    assert images.look_again()
    after = division_of(images)
    assert before.held_out < after.held_out and before.training < after.training
    assert after.held_out - before.held_out < new
    assert (len(images.data.held_out), len(images.data.train)) == (12, 48)
    assert (
        "images: 30 have come, 0 have gone; from the next round on 48 to train on, 12 held out" in caplog.text
    )

    for name in sorted(after.training)[:5]:
        (tmp_path / name).unlink()
    assert images.look_again()
    assert division_of(images).held_out == after.held_out
    assert len(images.data.train) == 43
    assert not images.look_again()


def test_it_is_so_after_a_restart_unless_another_share_is_asked_for(tmp_path: Path) -> None:
    pictures, state = tmp_path / "pictures", tmp_path / "state"
    state.mkdir()
    write_folder(pictures, {"a": 20, "b": 20})
    first = opening(pictures, read_division(state, SHARE)).division
    assert first is not None
    keep_division(state, first)
    add(pictures, "a", 40)
    again = opening(pictures, read_division(state, SHARE)).division
    assert again is not None
    assert first.held_out < again.held_out and first.training < again.training
    assert read_division(state, 0.5) == Division(0.5)
    other = opening(pictures, read_division(state, 0.5), share=0.5)
    assert len(other.held_out) == 40


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"share": "x", "held_out": [], "training": []}'])
def test_a_damaged_division_is_made_anew(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).write_text(content)
    assert read_division(tmp_path, SHARE) == Division(SHARE)
    assert f"{FILE}: " in caplog.text


def test_a_class_whose_held_out_images_are_gone_is_judged_by_others(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": 10, "b": 10})
    images = images_of(tmp_path)
    for name in division_of(images).held_out:
        (tmp_path / name).unlink()
    assert images.look_again()
    assert sorted(images.data.held_out.labels.tolist()) == [0, 0, 1, 1]


def test_images_that_cannot_be_taken_up_change_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_folder(tmp_path, {"a": 10, "b": 10})
    images = images_of(tmp_path)
    data = images.data
    write_folder(tmp_path, {"c": 3})
    assert not images.look_again()
    assert "classes have changed, which this run cannot follow" in caplog.text
    caplog.clear()
    assert not images.look_again() and not caplog.text, "it is said once"

    tmp_path.rename(tmp_path.with_name("unmounted"))
    assert not images.look_again()
    assert "the images have changed, but what was read before stays in use" in caplog.text
    assert images.data is data


def test_a_fixed_test_folder_stays_apart(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {"a": 10, "b": 10})
    write_folder(tmp_path / "test", {"a": 2, "b": 2})

    def opened(division: Division | None) -> DeviceData:
        return open_data(
            str(tmp_path / "train"), test=str(tmp_path / "test"), input_shape=SHAPE, division=division
        )

    images = DeviceImages(opened, None, (tmp_path / "train", tmp_path / "test"))
    add(tmp_path / "test", "b", 4)
    assert images.look_again()
    assert (len(images.data.train), len(images.data.held_out)) == (20, 8)
