# SPDX-License-Identifier: Apache-2.0
"""Notifies systemd (sd_notify) of this process's state; does nothing without systemd."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator

from splitee.cli.plain_text import plain

SLOWEST_DISK = 600  # seconds that writing a file may take; a worn card has been seen to need more than 30


def feed_watchdog() -> None:
    """Notify systemd's watchdog that this process is working.

    A device's session and a server call this at each event while their link's thread is alive, and
    `slow_disk` does when a file is written; nothing else does.
    """
    notify("WATCHDOG=1")


@contextlib.contextmanager
def slow_disk() -> Iterator[None]:
    """A context whose body may take SLOWEST_DISK before the watchdog ends this process.

    Afterwards the limit is as before. Use it only on the main thread, which feeds the watchdog: a write of
    another thread does not show that the main thread works.
    """
    usual = _watchdog_usec()
    if usual is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    notify(f"WATCHDOG_USEC={max(usual, SLOWEST_DISK * 1_000_000)}")
    try:
        yield
    finally:
        notify("WATCHDOG=1", f"WATCHDOG_USEC={usual}")


def _watchdog_usec() -> int | None:
    """The unit's WatchdogSec= in microseconds; None: there is none, or it watches another process."""
    usual, watched_pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    is_own = not watched_pid or watched_pid == str(os.getpid())
    return int(usual) if is_own and usual.isdecimal() else None


def notify(*states: str) -> None:
    """Sends states such as READY=1, STATUS=... and WATCHDOG=1, all in one message."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, contextlib.suppress(OSError):
        sender.sendto("\n".join(map(plain, states)).encode(), address)
