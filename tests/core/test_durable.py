"""State files: whole or not at all, checked, and one process at a time."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest

from splitee.durable import StateDirectory, write_atomically
from splitee.errors import StateError


def test_a_torn_round_is_ignored_with_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
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


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    state.save_round(7, bytes(100))
    data = bytearray((tmp_path / "round-000007.state").read_bytes())
    data[77] ^= 4
    (tmp_path / "round-000007.state").write_bytes(data)
    assert state.load_round(7) is None


def test_the_current_round_and_the_one_before_are_kept(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    for number in range(1, 6):
        state.save_round(number, b"x")
    state.prune(4)
    assert state.rounds() == [5, 4, 3]


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    first = StateDirectory(tmp_path)
    with pytest.raises(StateError, match="in use by another process"):
        StateDirectory(tmp_path)
    first.close()
    StateDirectory(tmp_path).close()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="choose another directory"):
        StateDirectory(tmp_path / "file" / "state")


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"before")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StateError, match="No space left"):
        write_atomically(path, b"after")
    assert path.read_bytes() == b"before"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_unreadable_facts_are_no_facts(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    assert state.facts() is None
    state.save_facts({"run": "x"})
    assert state.facts() == {"run": "x"}
    (tmp_path / "run.json").write_bytes(b'{"run": ')
    assert state.facts() is None
