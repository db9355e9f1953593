# SPDX-License-Identifier: Apache-2.0
"""Which images earlier rounds were trained on, also by an earlier process."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from image_folders import write_folder

from splitee_device.data.division import Division
from splitee_device.data.images import DeviceData, open_data
from splitee_device.training.image_record import IMAGE_RECORD, trained_since


def opened(root: Path, division: Division | None = None) -> DeviceData:
    return open_data(str(root), input_shape=(1, 6, 6), division=division)


@pytest.mark.parametrize("is_other", [False, True])
def test_images_that_changed_between_two_processes_are_recognised(tmp_path: Path, is_other: bool) -> None:
    root, state = tmp_path / "images", tmp_path / "state"
    state.mkdir()
    write_folder(root, {"a": 5, "b": 5})
    before = opened(root)
    assert [trained_since(state, before.train, number) for number in (1, 2)] == [0, 0]
    if is_other:
        Path(before.train.name(0)).rename(root / "b" / "moved.png")
    after = opened(root, before.division)
    assert len(after.train) == len(before.train)
    assert [trained_since(state, after.train, number) for number in (3, 4)] == [3 * is_other] * 2


@pytest.mark.parametrize("content", ["", "[]", '{"digest": 1, "since": 2}', "\xff"])
def test_damaged_record_is_replaced(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    write_folder(tmp_path / "images", {"a": 5, "b": 5})
    (tmp_path / IMAGE_RECORD).write_text(content, encoding="latin-1")
    images = opened(tmp_path / "images").train
    assert trained_since(tmp_path, images, 3) == 0
    assert f"{IMAGE_RECORD} is unreadable" in caplog.text
    caplog.clear()
    assert trained_since(tmp_path, images, 4) == 0
    assert caplog.text == ""
