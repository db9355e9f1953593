# SPDX-License-Identifier: Apache-2.0
"""What systemd's watchdog is told while a file is written: that it may take long, but not for ever."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from splitee.durable import write_atomically
from splitee.errors import StateError

USUAL = 180_000_000


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", str(USUAL))
        yield listener


def told(systemd: socket.socket) -> list[str]:
    states: list[str] = []
    while True:
        try:
            states += systemd.recv(1000).decode().splitlines()
        except BlockingIOError:
            return states


def test_it_waits_ten_minutes_for_a_file_and_no_longer(
    systemd: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told once, before: an fsync that hangs for ever feeds nobody."""
    meanwhile: list[list[str]] = []
    fsync = os.fsync

    def look(descriptor: int) -> None:
        meanwhile.append(told(systemd))
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", look)
    write_atomically(tmp_path / "file", b"state")
    assert meanwhile == [["WATCHDOG_USEC=600000000"], []]  # of the file, and of its folder
    assert told(systemd) == ["WATCHDOG=1", f"WATCHDOG_USEC={USUAL}"]


def test_a_disk_that_is_full_leaves_it_as_strict_as_before(
    systemd: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StateError):
        write_atomically(tmp_path / "file", b"state")
    assert told(systemd)[-1] == f"WATCHDOG_USEC={USUAL}"


def test_a_unit_that_waits_longer_is_not_made_to_wait_less(
    systemd: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "900000000")
    write_atomically(tmp_path / "file", b"state")
    assert told(systemd) == ["WATCHDOG_USEC=900000000", "WATCHDOG=1", "WATCHDOG_USEC=900000000"]


def test_another_thread_does_not_feed_it(systemd: socket.socket, tmp_path: Path) -> None:
    """It would hide that the main one hangs."""
    thread = threading.Thread(target=write_atomically, args=(tmp_path / "file", b"state"))
    thread.start()
    thread.join()
    assert (tmp_path / "file").read_bytes() == b"state"
    assert told(systemd) == []


@pytest.mark.parametrize(("name", "value"), [("WATCHDOG_USEC", ""), ("WATCHDOG_PID", "1")])
def test_a_process_without_a_watchdog_of_its_own_tells_nothing(
    systemd: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    write_atomically(tmp_path / "file", b"state")
    assert told(systemd) == []
