# SPDX-License-Identifier: Apache-2.0
"""State files: whole or not at all, checked, and one process at a time."""

from __future__ import annotations

import errno
import logging
import os
from contextlib import closing
from pathlib import Path

import pytest

from splitee.durable import StateDirectory, Writable, write_atomically
from splitee.errors import StateError


def test_torn_round_is_ignored_with_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = StateDirectory(tmp_path)
    state.save_round(1, b"one" * 1000)
    state.save_round(2, b"two" * 1000)
    file = tmp_path / "round-000002.state"
    for size in (0, 5, 39, 40, 41, 3000):
        caplog.clear()
        file.write_bytes(file.read_bytes()[:size])
        assert state.load_round(2) is None
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert state.load_round(1) == b"one" * 1000
    assert state.rounds() == [2, 1]


def test_content_written_in_pieces_gives_the_same_file(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    whole = state.save("whole", b"onetwo")

    def write(file: Writable) -> None:
        file.write(b"one")
        file.write(memoryview(b"two"))

    assert state.save("pieces", write) == whole
    assert (tmp_path / "pieces").read_bytes() == (tmp_path / "whole").read_bytes()
    assert state.load("pieces") == b"onetwo"


def test_failed_write_keeps_the_stored_round(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    state.save_round(1, b"before")

    def fail(file: Writable) -> None:
        file.write(b"half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        state.save_round(1, fail)
    assert state.load_round(1) == b"before"
    assert not list(tmp_path.glob(".*.new"))


def test_round_with_a_flipped_bit_is_ignored(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    state.save_round(7, bytes(100))
    data = bytearray((tmp_path / "round-000007.state").read_bytes())
    data[77] ^= 4
    (tmp_path / "round-000007.state").write_bytes(data)
    assert state.load_round(7) is None


def test_prune_keeps_the_given_round_the_one_before_and_later_ones(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    for number in range(1, 6):
        state.save_round(number, b"x")
    state.prune(4)
    assert state.rounds() == [5, 4, 3]


def test_directory_in_use_is_refused_until_it_is_closed(tmp_path: Path) -> None:
    first = StateDirectory(tmp_path)
    with pytest.raises(StateError, match="in use by another process"):
        StateDirectory(tmp_path)
    first.close()
    StateDirectory(tmp_path).close()


def test_folder_that_cannot_be_created_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="choose another directory"):
        StateDirectory(tmp_path / "file" / "state")


def test_full_disk_keeps_the_previous_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"before")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StateError, match="No space left"):
        write_atomically(path, b"after")
    assert path.read_bytes() == b"before"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_file_that_cannot_be_removed_is_reported_in_one_line(tmp_path: Path) -> None:
    """As on a card that the system has made read-only; here folders are in the places of files."""
    with closing(StateDirectory(tmp_path)) as state:
        (tmp_path / "round-000003.changes").mkdir()
        with pytest.raises(StateError, match=r"cannot write .*round-000003\.changes: Is a directory"):
            state.save_round(3, b"x")
        for number in (4, 5):
            state.save_round(number, b"x")
        (tmp_path / "round-000001.state").mkdir()
        with pytest.raises(StateError, match=r"cannot write .*round-000001\.state: Is a directory"):
            state.prune(5)
    (tmp_path / ".unfinished.new").mkdir()
    with pytest.raises(StateError, match=r"cannot write .*\.unfinished\.new: Is a directory"):
        StateDirectory(tmp_path)


def test_directory_opens_again_once_a_full_disk_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(StateError, match="No space left"):
            StateDirectory(tmp_path)
    StateDirectory(tmp_path).close()


def test_unreadable_facts_are_read_as_missing(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    assert state.facts() is None
    state.save_facts({"run": "x"})
    assert state.facts() == {"run": "x"}
    (tmp_path / "run.json").write_bytes(b'{"run": ')
    assert state.facts() is None


def test_link_in_the_place_of_a_file_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"before")
    (tmp_path / "file").symlink_to("outside")
    write_atomically(tmp_path / "file", b"after")
    assert (tmp_path / "outside").read_bytes() == b"before"
    assert not (tmp_path / "file").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"after"


def test_unfinished_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    state.save_round(1, b"x")
    state.close()
    (tmp_path / ".0123456789abcdef.new").write_bytes(b"half")
    StateDirectory(tmp_path).close()
    assert {file.name for file in tmp_path.iterdir()} == {".lock", "round-000001.state"}


def test_lock_that_is_a_link_is_refused_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / ".lock").symlink_to(tmp_path / "outside")
    with pytest.raises(StateError, match="choose another directory"):
        StateDirectory(tmp_path / "state")
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_umask_decides_the_mode_of_a_file_unless_it_is_given(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "file", b"")
        write_atomically(tmp_path / "own", b"", mode=0o640)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode
    assert (tmp_path / "own").stat().st_mode & 0o777 == 0o640
