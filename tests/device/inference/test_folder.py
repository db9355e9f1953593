# SPDX-License-Identifier: Apache-2.0
"""A folder that is watched: what is an image there, when it is taken, and what is never opened."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from splitee_device.inference.folder import Folder


def names(folder: Folder) -> list[str]:
    return [name for name, _ in folder.new()]


def test_what_is_there_at_the_start_is_not_new(tmp_path: Path) -> None:
    (tmp_path / "old.jpg").write_bytes(b"x")
    folder = Folder(tmp_path)
    (tmp_path / "new.jpg").write_bytes(b"x")
    assert [names(folder) for _ in range(3)] == [[], ["new.jpg"], []]


def test_what_is_there_at_the_start_is_taken_if_that_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "old.jpg").write_bytes(b"x")
    folder = Folder(tmp_path, existing=True)
    assert [names(folder) for _ in range(3)] == [[], ["old.jpg"], []]


def test_a_folder_that_disappears_is_waited_for_with_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path, away = tmp_path / "drive", tmp_path / "away"
    path.mkdir()
    (path / "old.jpg").write_bytes(b"x")
    folder = Folder(path)
    path.rename(away)
    assert [names(folder) for _ in range(3)] == [[], [], []]
    away.rename(path)
    (path / "new.jpg").write_bytes(b"x")
    assert [names(folder) for _ in range(3)] == [[], ["new.jpg"], []]
    assert [record.getMessage() for record in caplog.records] == [
        f"--watch {path}: No such file or directory; waiting for it to come back",
        f"--watch {path} is back",
    ]


def test_what_is_no_regular_file_is_skipped_counted_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Folder(tmp_path)
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "image.png").write_bytes(b"x")
    assert [names(folder) for _ in range(3)] == [[], ["image.png"], []]
    assert {path.name for path in folder.skipped} == {"fifo.jpg", "folder.png", "zero.png"}
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [
        f"skipped: {name}: expected an image, got no regular file"
        for name in ("fifo.jpg", "folder.png", "zero.png")
    ]
