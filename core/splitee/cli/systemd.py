"""Tells systemd how this process is (sd_notify); nothing where no systemd listens."""

from __future__ import annotations

import contextlib
import os
import socket

from splitee.cli.plain_text import plain


def feed_watchdog() -> None:
    """Tell systemd's watchdog that this process works.

    A device's session does so at each event while its link's thread lives; nothing else feeds it.
    """
    notify("WATCHDOG=1")


def notify(*states: str) -> None:
    """Sends READY=1, STATUS=..., WATCHDOG=1 and the like: each a state of its own, in one line."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, contextlib.suppress(OSError):
        sender.sendto("\n".join(map(plain, states)).encode(), address)
