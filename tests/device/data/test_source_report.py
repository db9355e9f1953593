# SPDX-License-Identifier: Apache-2.0
"""Every image of a source is accounted for: counted in its class, or ignored for a logged reason."""

from __future__ import annotations

import io
import logging
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from image_folders import png, write_folder, write_parquet

from splitee.errors import DataError
from splitee_device.data.images import DeviceData, open_data

SHAPE = (1, 6, 6)


def opened(root: Path | str, caplog: pytest.LogCaptureFixture, **settings: object) -> tuple[DeviceData, str]:
    """The data, and what was logged."""
    caplog.set_level(logging.INFO)
    data = open_data(str(root), input_shape=SHAPE, **settings)  # type: ignore[arg-type]
    return data, "\n".join(f"{record.levelname} {record.getMessage()}" for record in caplog.records)


def refusal(root: Path | str, **settings: object) -> str:
    with pytest.raises(DataError) as caught:
        open_data(str(root), input_shape=SHAPE, **settings)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_images_in_subfolders_of_a_class_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_folder(tmp_path, {"a": 10, "b/2024/may": 10, "b/2025": 10})
    data, log = opened(tmp_path, caplog)
    assert data.class_names == ("a", "b")
    assert "INFO a: 9 to train on, 1 held out" in log
    assert "INFO b: 18 to train on, 2 held out" in log
    assert "WARNING" not in log
    assert data.train.name(17).startswith(f"{tmp_path}/b/202")


def test_ignored_files_are_logged_with_their_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(tmp_path, {"a": 10, "b": 10, "b/@eaDir/x": 3, "#recycle": 2, "b/.trash": 1})
    for number in range(12):
        (tmp_path / "a" / f"{number}.heic").write_bytes(b"")
    (tmp_path / "a" / "notes.txt").write_text("")
    (tmp_path / "a" / "._000.png").write_bytes(b"")
    (tmp_path / "a" / ".DS_Store").write_bytes(b"")
    (tmp_path / "b" / "linked").symlink_to(tmp_path / "a")
    (tmp_path / "loose.png").write_bytes(png(0))
    data, log = opened(tmp_path, caplog)
    assert len(data.train) + len(data.held_out) == 20
    (line,) = [line for line in log.splitlines() if ": ignored: " in line]
    for expected in (
        "12 .heic (install pillow-heif)",
        "1 .txt",
        "1 hidden",
        "3 in @eaDir",
        "2 in #recycle",
        "1 in .trash",
        "1 beside the class folders",
        "1 linked folders",
    ):
        assert expected in line


def test_empty_class_is_ignored_unless_the_fleet_has_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_folder(tmp_path, {"a": 10, "b": 0, "c": 10})
    data, log = opened(tmp_path, caplog)
    assert data.class_names == ("a", "c")
    assert "WARNING" in log
    assert "without images, and so no classes: b" in log
    caplog.clear()
    data, log = opened(tmp_path, caplog, class_names=("c", "b", "a"))
    assert data.class_names == ("c", "b", "a")
    assert [data.train.name(i)[-9] for i in range(len(data.train))] == ["cba"[x] for x in data.train.labels]
    assert "no images to train on of b" in log
    data, _ = opened(tmp_path, caplog, class_names=("a", "c", "d"))
    assert data.class_names == ("a", "c")


def test_class_imbalance_beyond_twenty_to_one_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_folder(tmp_path, {"a": 47, "b": 3})
    assert "42 images of a, 2 of b" in opened(tmp_path, caplog)[1]
    caplog.clear()
    for path in sorted((tmp_path / "a").iterdir())[:3]:
        path.unlink()
    assert "a class with so few" not in opened(tmp_path, caplog)[1]


def test_log_of_many_classes_shows_the_rarest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = np.repeat(np.arange(40), np.arange(40) % 20 + 3).tolist()
    write_parquet(tmp_path / "x.parquet", [png(0)] * len(labels), labels)
    _, log = opened(tmp_path / "x.parquet", caplog)
    assert sum("to train on" in line for line in log.splitlines()) == 31
    assert "INFO 20: 2 to train on, 1 held out" in log
    assert "INFO 10 others: 16..20 to train on, 2 held out" in log


def test_class_counts_are_a_table_on_a_terminal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    write_folder(tmp_path, {"a[b]": 10, "c\x1b": 10})
    _, log = opened(tmp_path, caplog)
    assert "to train on" not in log
    shown = [re.sub(r"\s+", " ", line) for line in terminal.getvalue().splitlines()]
    assert any("a[b] │ 9 │ 1" in line for line in shown)
    assert any(r"c\x1b │ 9 │ 1" in line for line in shown)
    caplog.set_level(logging.WARNING)
    terminal.truncate(0)
    open_data(str(tmp_path), input_shape=SHAPE)
    assert not terminal.getvalue()


# --- a test folder


def test_all_images_of_a_test_folder_are_held_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(tmp_path / "train", {"a": 10, "b": 10, "c": 10})
    write_folder(tmp_path / "test", {"b": 4, "c": 3, "c/@eaDir": 2})
    data, log = opened(tmp_path / "train", caplog, test=str(tmp_path / "test"))
    assert (len(data.train), len(data.held_out)) == (30, 7)
    assert data.held_out.labels.tolist() == [1] * 4 + [2] * 3
    assert data.held_out.name(0) == str(tmp_path / "test" / "b" / "000.png")
    assert "WARNING" in log
    assert "no images held out of a" in log
    assert "ignored: 2 in @eaDir of --test" in log


def test_unknown_class_in_a_test_folder_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {"a": 10, "b": 10})
    write_folder(tmp_path / "test", {"a": 4, "x": 3})
    assert "has images of 'x'" in refusal(tmp_path / "train", test=str(tmp_path / "test"))


# --- hints


def test_folder_with_train_and_test_subfolders_is_refused_with_a_hint(tmp_path: Path) -> None:
    write_folder(tmp_path, {"train/a": 3, "train/b": 3, "test/a": 2, "test/b": 2})
    expected = f"its classes are in {tmp_path}/train: give --data {tmp_path}/train --test {tmp_path}/test"
    assert expected in refusal(tmp_path)


def test_class_folders_named_train_and_test_are_classes(tmp_path: Path) -> None:
    write_folder(tmp_path, {"train": 10, "test": 10})
    assert open_data(str(tmp_path), input_shape=SHAPE).class_names == ("test", "train")


def test_archive_is_refused_with_a_hint_to_unpack_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "waste.zip", "w") as archive:
        archive.writestr("a/0.png", png(0))
    assert "is an archive: unpack it" in refusal(tmp_path / "waste.zip")


def test_single_image_is_refused_as_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(png(0))
    assert "is a single image, which is no data set; expected a folder with a folder" in refusal(
        tmp_path / "one.png"
    )


def test_tilde_is_expanded_to_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_folder(tmp_path / "data", {"a": 5, "b": 5})
    data = open_data("~/data", input_shape=SHAPE, test="~/data")
    assert (len(data.train), len(data.held_out)) == (10, 10)
    assert "~" not in refusal("torchvision:CIFAR10:~/data")
