# SPDX-License-Identifier: Apache-2.0
"""A folder that is watched: what is an image there, when it is taken, and what is never opened."""

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
from splitee_device.capture.folder import LOOK_AT_ALL, SETTLED, Folder


def looks(folder: Folder, clock: FakeClock) -> list[list[str]]:
    """What three looks find, each as long after the last as a file takes to settle."""
    found = []
    for _ in range(3):
        found.append(folder.new())
        clock.advance(SETTLED)
    return found


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_what_is_there_at_the_start_is_not_new(tmp_path: Path, clock: FakeClock) -> None:
    (tmp_path / "old.jpg").write_bytes(b"x")
    folder = Folder(tmp_path, poll=1, clock=clock)
    (tmp_path / "new.jpg").write_bytes(b"x")
    (tmp_path / "words.txt").write_bytes(b"x")
    assert looks(folder, clock) == [[], ["new.jpg"], []]


def test_what_is_there_at_the_start_is_taken_if_that_is_wanted(tmp_path: Path, clock: FakeClock) -> None:
    (tmp_path / "old.jpg").write_bytes(b"x")
    folder = Folder(tmp_path, existing=True, poll=1, clock=clock)
    assert looks(folder, clock) == [[], ["old.jpg"], []]


def test_a_file_that_grows_is_taken_when_it_has_settled(tmp_path: Path, clock: FakeClock) -> None:
    folder = Folder(tmp_path, poll=1, clock=clock)
    file = tmp_path / "grows.jpg"
    file.touch()
    assert looks(folder, clock) == [[], [], []], "an empty file is none yet"
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


def test_a_file_that_has_its_size_from_the_start_is_taken_when_nobody_writes_any_more(
    tmp_path: Path, clock: FakeClock
) -> None:
    """As a copy over SMB."""
    folder = Folder(tmp_path, poll=1, clock=clock)
    file = tmp_path / "copied.jpg"
    file.write_bytes(b"xxx")
    for written_at in range(1, 4):
        os.utime(file, (written_at, written_at))
        assert folder.new() == []
        clock.advance(SETTLED)
    assert folder.new() == ["copied.jpg"]


def test_what_grows_between_the_start_and_the_first_look_is_new(tmp_path: Path, clock: FakeClock) -> None:
    for name in ("grows.jpg", "old.jpg"):
        (tmp_path / name).write_bytes(b"ha")
    folder = Folder(tmp_path, clock=clock)
    (tmp_path / "grows.jpg").write_bytes(b"half and half")
    assert looks(folder, clock) == [[], ["grows.jpg"], []]


@pytest.mark.parametrize("stall", [SETTLED, 5.0])
def test_a_file_that_grows_after_it_was_taken_is_taken_again(
    tmp_path: Path, clock: FakeClock, stall: float
) -> None:
    folder = Folder(tmp_path, poll=5, clock=clock)
    file = tmp_path / "stalls.jpg"
    file.write_bytes(b"ha")
    assert looks(folder, clock) == [[], ["stalls.jpg"], []]
    clock.advance(stall)
    file.write_bytes(b"half and half")
    assert looks(folder, clock) == [[], ["stalls.jpg"], []]
    assert looks(folder, clock) == [[], [], []]


def test_what_is_gone_may_come_again_under_its_name(tmp_path: Path, clock: FakeClock) -> None:
    folder = Folder(tmp_path, poll=1, clock=clock)
    for _ in range(2):
        (tmp_path / "again.jpg").write_bytes(b"x")
        assert looks(folder, clock) == [[], ["again.jpg"], []]
        (tmp_path / "again.jpg").unlink()
        assert folder.new() == []


@pytest.mark.parametrize("poll", [None, 1.0])
def test_a_folder_that_disappears_is_waited_for_with_one_line(
    tmp_path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture, poll: float | None
) -> None:
    caplog.set_level("INFO")
    path, away = tmp_path / "drive", tmp_path / "away"
    path.mkdir()
    (path / "old.jpg").write_bytes(b"x")
    folder = Folder(path, poll=poll, clock=clock)
    assert folder.new() == []
    path.rename(away)
    assert looks(folder, clock) == [[], [], []]
    away.rename(path)
    (path / "new.jpg").write_bytes(b"x")
    assert looks(folder, clock) == [[], ["new.jpg"], []]
    assert [record.getMessage() for record in caplog.records] == [
        f"--watch {path}: No such file or directory; waiting for it to come back",
        f"--watch {path} is back",
    ]


def test_what_is_no_regular_file_is_skipped_counted_and_said_once(
    tmp_path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Folder(tmp_path, poll=1, clock=clock)
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "image.png").write_bytes(b"x")
    assert looks(folder, clock) == [[], ["image.png"], []]
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


def test_the_system_tells_of_what_comes_by_copy_and_by_move(tmp_path: Path, collect: Collect) -> None:
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


def test_an_image_is_taken_in_each_version_and_its_permissions_are_none(
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


def test_names_that_are_no_text_are_names(tmp_path: Path, collect: Collect) -> None:
    backlog = collect(Folder(tmp_path))
    for name in (b"caf\xe9.jpg", b"later.jpg", b"\xff.jpg"):
        Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).write_bytes(b"x")
        assert taken(backlog, 1) == [os.fsdecode(name)]


def test_a_drive_that_comes_back_is_listened_to_again(tmp_path: Path, collect: Collect) -> None:
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


def test_an_idle_folder_of_many_files_is_not_looked_through(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2000):
        (tmp_path / f"{number}.jpg").write_bytes(b"x")
    folder = Folder(tmp_path, clock=clock)
    assert folder.new() == []
    listings: list[object] = []
    scan = os.scandir
    monkeypatch.setattr(folder_module.os, "scandir", lambda path: listings.append(path) or scan(path))
    until_due = round(LOOK_AT_ALL / SETTLED) - 1
    for _ in range(until_due):
        clock.advance(SETTLED)
        assert folder.new() == []
    assert listings == []
    clock.advance(2 * SETTLED)
    assert folder.new() == []
    assert len(listings) == 1, "events may have been lost"


def test_thousands_of_files_at_once_are_all_taken_and_few_wait(tmp_path: Path, collect: Collect) -> None:
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


def test_what_was_ready_when_a_run_ended_is_taken_in_the_next(tmp_path: Path) -> None:
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
