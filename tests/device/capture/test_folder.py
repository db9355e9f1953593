# SPDX-License-Identifier: Apache-2.0
"""A watched folder: which files are images, when they are taken, and which are never opened."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes import FakeClock
from waiting import until

from splitee_device.capture import folder as folder_module
from splitee_device.capture.backlog import Backlog
from splitee_device.capture.folder import SCAN_EVERY, SETTLED, Folder


def scan_three_times(folder: Folder, clock: FakeClock) -> list[list[str]]:
    """The files that three scans find, each as long after the last as a file takes to settle."""
    found = []
    for _ in range(3):
        found.append(folder.new())
        clock.advance(SETTLED)
    return found


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_only_new_image_files_are_taken(tmp_path: Path, clock: FakeClock) -> None:
    (tmp_path / "old.jpg").write_bytes(b"x")
    folder = Folder(tmp_path, poll=1, clock=clock)
    (tmp_path / "new.jpg").write_bytes(b"x")
    (tmp_path / "words.txt").write_bytes(b"x")
    assert scan_three_times(folder, clock) == [[], ["new.jpg"], []]


def test_existing_files_are_taken_if_requested(tmp_path: Path, clock: FakeClock) -> None:
    (tmp_path / "old.jpg").write_bytes(b"x")
    folder = Folder(tmp_path, existing=True, poll=1, clock=clock)
    assert scan_three_times(folder, clock) == [[], ["old.jpg"], []]


def test_growing_file_is_taken_once_its_size_is_stable(tmp_path: Path, clock: FakeClock) -> None:
    folder = Folder(tmp_path, poll=1, clock=clock)
    file = tmp_path / "grows.jpg"
    file.touch()
    assert scan_three_times(folder, clock) == [[], [], []], "an empty file is none yet"
    for size in (1, 2):
        file.write_bytes(b"x" * size)
        assert folder.new() == []
        clock.advance(SETTLED)
    file.write_bytes(b"xxx")
    assert folder.new() == []
    clock.advance(SETTLED / 2)
    assert folder.new() == [], "its size has been the same for too short a time"
    clock.advance(SETTLED)
    assert folder.new() == ["grows.jpg"]


def test_preallocated_file_is_taken_once_it_is_no_longer_modified(tmp_path: Path, clock: FakeClock) -> None:
    """Like a copy over SMB."""
    folder = Folder(tmp_path, poll=1, clock=clock)
    file = tmp_path / "copied.jpg"
    file.write_bytes(b"xxx")
    for written_at in range(1, 4):
        os.utime(file, (written_at, written_at))
        assert folder.new() == []
        clock.advance(SETTLED)
    assert folder.new() == ["copied.jpg"]


def test_existing_file_that_grows_before_the_first_scan_is_taken(tmp_path: Path, clock: FakeClock) -> None:
    for name in ("grows.jpg", "old.jpg"):
        (tmp_path / name).write_bytes(b"ha")
    folder = Folder(tmp_path, clock=clock)
    (tmp_path / "grows.jpg").write_bytes(b"half and half")
    assert scan_three_times(folder, clock) == [[], ["grows.jpg"], []]


@pytest.mark.parametrize("stall", [SETTLED, 5.0])
def test_file_that_grows_after_it_was_taken_is_taken_again(
    tmp_path: Path, clock: FakeClock, stall: float
) -> None:
    folder = Folder(tmp_path, poll=5, clock=clock)
    file = tmp_path / "stalls.jpg"
    file.write_bytes(b"ha")
    assert scan_three_times(folder, clock) == [[], ["stalls.jpg"], []]
    clock.advance(stall)
    file.write_bytes(b"half and half")
    assert scan_three_times(folder, clock) == [[], ["stalls.jpg"], []]
    assert scan_three_times(folder, clock) == [[], [], []]


def test_deleted_file_that_returns_under_its_name_is_taken_again(tmp_path: Path, clock: FakeClock) -> None:
    folder = Folder(tmp_path, poll=1, clock=clock)
    for _ in range(2):
        (tmp_path / "again.jpg").write_bytes(b"x")
        assert scan_three_times(folder, clock) == [[], ["again.jpg"], []]
        (tmp_path / "again.jpg").unlink()
        assert folder.new() == []


@pytest.mark.parametrize("poll", [None, 1.0])
def test_missing_folder_is_awaited_and_logged_once(
    tmp_path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture, poll: float | None
) -> None:
    caplog.set_level("INFO")
    path, away = tmp_path / "drive", tmp_path / "away"
    path.mkdir()
    (path / "old.jpg").write_bytes(b"x")
    folder = Folder(path, poll=poll, clock=clock)
    assert folder.new() == []
    path.rename(away)
    assert scan_three_times(folder, clock) == [[], [], []]
    away.rename(path)
    (path / "new.jpg").write_bytes(b"x")
    assert scan_three_times(folder, clock) == [[], ["new.jpg"], []]
    assert [record.getMessage() for record in caplog.records] == [
        f"--watch {path}: No such file or directory; waiting for it to come back",
        f"--watch {path} is back",
    ]


def test_irregular_files_are_skipped_counted_and_logged_once(
    tmp_path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Folder(tmp_path, poll=1, clock=clock)
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "image.png").write_bytes(b"x")
    assert scan_three_times(folder, clock) == [[], ["image.png"], []]
    assert {path.name for path in folder.skipped} == {"fifo.jpg", "folder.png", "zero.png"}
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert sorted(warnings) == [
        f"skipped: {name}: expected an image, got no regular file"
        for name in ("fifo.jpg", "folder.png", "zero.png")
    ]
    (tmp_path / "fifo.jpg").unlink()
    assert folder.new() == []
    assert {path.name for path in folder.skipped} == {"folder.png", "zero.png"}


ROOM = 200
Collect = Callable[[Folder], Backlog]


@pytest.fixture
def collect() -> Iterator[Collect]:
    """`collect(folder)`: its images, taken on a thread as a service does."""
    opened: list[Backlog] = []

    def collect(folder: Folder) -> Backlog:
        opened.append(Backlog(folder, ROOM, drops=False))
        opened[-1].open(lambda: None)
        return opened[-1]

    yield collect
    for backlog in opened:
        backlog.close()


def taken(backlog: Backlog, count: int) -> list[str]:
    """The names of the next `count` images."""
    names: list[str] = []

    def enough() -> bool:
        names.extend(image.name for image in backlog.take(count))
        return len(names) >= count

    until(enough, lambda: str(names))
    return names


def test_copied_moved_and_recreated_files_are_taken(tmp_path: Path, collect: Collect) -> None:
    watched = tmp_path / "watched"
    watched.mkdir()
    backlog = collect(Folder(watched))
    (watched / "copied.jpg").write_bytes(b"x")
    assert taken(backlog, 1) == ["copied.jpg"]
    (tmp_path / "elsewhere.jpg").write_bytes(b"x")
    (tmp_path / "elsewhere.jpg").rename(watched / "moved.jpg")
    assert taken(backlog, 1) == ["moved.jpg"]
    (watched / "copied.jpg").unlink()
    (watched / "copied.jpg").write_bytes(b"x")
    assert taken(backlog, 1) == ["copied.jpg"]


def test_image_is_taken_again_on_new_content_but_not_new_permissions(
    tmp_path: Path, collect: Collect
) -> None:
    watched, new = tmp_path / "watched", tmp_path / "new.jpg"
    watched.mkdir()
    for name in ("latest.jpg", "old.jpg"):
        (watched / name).write_bytes(b"x")
    backlog = collect(Folder(watched))
    for size in (2, 3):
        new.write_bytes(b"x" * size)
        new.rename(watched / "latest.jpg")
        assert taken(backlog, 1) == ["latest.jpg"]
    with (watched / "latest.jpg").open("ab") as file:
        file.write(b"x")
    assert taken(backlog, 1) == ["latest.jpg"]
    (watched / "old.jpg").chmod(0o600)
    (watched / "last.jpg").write_bytes(b"x")
    assert taken(backlog, 1) == ["last.jpg"]


def test_file_names_that_are_not_utf_8_are_accepted(tmp_path: Path, collect: Collect) -> None:
    backlog = collect(Folder(tmp_path))
    for name in (b"caf\xe9.jpg", b"later.jpg", b"\xff.jpg"):
        Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).write_bytes(b"x")
        assert taken(backlog, 1) == [os.fsdecode(name)]


def test_folder_that_is_replaced_is_watched_again(tmp_path: Path, collect: Collect) -> None:
    path, away = tmp_path / "drive", tmp_path / "away"
    path.mkdir()
    (path / "old.jpg").write_bytes(b"x")
    backlog = collect(Folder(path))
    (path / "first.jpg").write_bytes(b"x")
    assert taken(backlog, 1) == ["first.jpg"]
    path.rename(away)
    path.mkdir()
    (path / "second.jpg").write_bytes(b"x")
    assert taken(backlog, 1) == ["second.jpg"]
    (path / "third.jpg").write_bytes(b"x")
    assert taken(backlog, 1) == ["third.jpg"]


def test_idle_folder_is_listed_only_at_long_intervals(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2000):
        (tmp_path / f"{number}.jpg").write_bytes(b"x")
    folder = Folder(tmp_path, clock=clock)
    assert folder.new() == []
    listings: list[object] = []
    scan = os.scandir
    monkeypatch.setattr(folder_module.os, "scandir", lambda path: listings.append(path) or scan(path))
    until_due = round(SCAN_EVERY / SETTLED) - 1
    for _ in range(until_due):
        clock.advance(SETTLED)
        assert folder.new() == []
    assert listings == []
    clock.advance(2 * SETTLED)
    assert folder.new() == []
    assert len(listings) == 1, "events may have been lost"


def test_thousands_of_new_files_are_all_taken_in_a_bounded_backlog(tmp_path: Path, collect: Collect) -> None:
    backlog = collect(Folder(tmp_path))
    names = [f"{number:04}.jpg" for number in range(3000)]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    most_waiting = 0
    found: list[str] = []

    def all_came() -> bool:
        nonlocal most_waiting
        most_waiting = max(most_waiting, backlog.waiting)
        while images := backlog.take(ROOM):
            found.extend(image.name for image in images)
        return len(found) >= len(names)

    until(all_came, lambda: f"{len(found)} came")
    assert sorted(found) == names
    assert most_waiting <= ROOM
    assert backlog.dropped == 0


def test_files_ready_when_the_backlog_closes_are_taken_at_the_next_open(tmp_path: Path) -> None:
    folder = Folder(tmp_path, existing=True)
    for number in range(30):
        (tmp_path / f"{number:02}.jpg").write_bytes(b"x")
    backlog = Backlog(folder, 4, drops=False)
    names: list[str] = []
    for _ in range(2):
        backlog.open(lambda: None)
        names += taken(backlog, 5)
        backlog.close()
    backlog.open(lambda: None)
    names += taken(backlog, 30 - len(names))
    backlog.close()
    assert names == [f"{number:02}.jpg" for number in range(30)]
