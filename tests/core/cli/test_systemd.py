# SPDX-License-Identifier: Apache-2.0
"""systemd's watchdog is extended while a file is written, but not for ever."""

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


def notifications(systemd: socket.socket) -> list[str]:
    states: list[str] = []
    while True:
        try:
            states += systemd.recv(1000).decode().splitlines()
        except BlockingIOError:
            return states


def test_watchdog_is_extended_to_ten_minutes_while_a_file_is_written(
    systemd: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is notified once, before: an fsync that hangs for ever does not feed it."""
    meanwhile: list[list[str]] = []
    fsync = os.fsync

    def look(descriptor: int) -> None:
        meanwhile.append(notifications(systemd))
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", look)
    write_atomically(tmp_path / "file", b"state")
    assert meanwhile == [["WATCHDOG_USEC=600000000"], []]  # of the file, and of its folder
    assert notifications(systemd) == ["WATCHDOG=1", f"WATCHDOG_USEC={USUAL}"]


def test_watchdog_interval_is_restored_after_a_failed_write(
    systemd: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StateError):
        write_atomically(tmp_path / "file", b"state")
    assert notifications(systemd)[-1] == f"WATCHDOG_USEC={USUAL}"


def test_watchdog_interval_beyond_ten_minutes_is_not_shortened(
    systemd: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "900000000")
    write_atomically(tmp_path / "file", b"state")
    assert notifications(systemd) == ["WATCHDOG_USEC=900000000", "WATCHDOG=1", "WATCHDOG_USEC=900000000"]


def test_write_in_another_thread_does_not_feed_the_watchdog(systemd: socket.socket, tmp_path: Path) -> None:
    """Feeding it would hide that the main thread hangs."""
    thread = threading.Thread(target=write_atomically, args=(tmp_path / "file", b"state"))
    thread.start()
    thread.join()
    assert (tmp_path / "file").read_bytes() == b"state"
    assert notifications(systemd) == []


@pytest.mark.parametrize(("name", "value"), [("WATCHDOG_USEC", ""), ("WATCHDOG_PID", "1")])
def test_process_without_its_own_watchdog_sends_no_notification(
    systemd: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    write_atomically(tmp_path / "file", b"state")
    assert notifications(systemd) == []
