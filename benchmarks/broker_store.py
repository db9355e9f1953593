# SPDX-License-Identifier: Apache-2.0
"""What a Mosquitto stores: sessions of clients that are not connected, and its database on disk."""

from __future__ import annotations

import os
import signal
import time
from contextlib import closing
from pathlib import Path

import click

from splitee.mqtt.address import BrokerAddress
from splitee.mqtt.events import Message
from splitee.mqtt.link import Link

INTERVAL = 1  # seconds between two updates of the broker's counts
SETTINGS = f"sys_interval {INTERVAL}\nautosave_interval 5\n"
COUNTS = ALL, CONNECTED = "$SYS/broker/clients/total", "$SYS/broker/clients/connected"
LARGEST_STORE = 10_000_000  # bytes that a fleet's broker may have on its disk
WAIT = 15.0  # seconds
SETTLED = 1.5 * (INTERVAL + 1)  # seconds: it updates them once more than INTERVAL whole seconds have passed


def keeping(settings: str, directory: Path) -> str:
    """Mosquitto's settings, with a database in `directory`."""
    kept = settings.replace("persistence false", f"persistence true\npersistence_location {directory}/")
    as_root = "user root\n" if os.geteuid() == 0 else ""  # else it could not write there
    return kept + SETTINGS + as_root


def abandoned_sessions(address: BrokerAddress) -> int:
    """Sessions that the broker keeps for clients that are not connected.

    It publishes a count that has changed: what it retains holds once its next update has brought no other.
    """
    counts = dict.fromkeys(COUNTS, -1)
    with closing(Link(address, "counts-sessions")) as link:
        link.open(WAIT)
        link.subscribe(*COUNTS)
        until = time.monotonic() + WAIT
        settled = until
        while time.monotonic() < min(until, settled):
            event = link.receive(0.5)
            if isinstance(event, Message):
                counts[event.topic] = int(event.payload)
                settled = time.monotonic() + SETTLED if -1 not in counts.values() else until
    if -1 in counts.values():
        raise click.ClickException(f"the broker does not publish {' and '.join(COUNTS)}")
    return counts[ALL] - counts[CONNECTED]


class Database:
    """The broker's database file; `largest` is the most bytes that `measure` has seen."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "mosquitto.db"
        self.largest = 0

    def measure(self) -> int:
        size = self._path.stat().st_size if self._path.exists() else 0
        self.largest = max(self.largest, size)
        return size

    def saved(self, broker: int) -> int:
        """Bytes after the broker with this process id has written all that it keeps.

        Raises ClickException: it has written nothing.
        """
        before = self._path.stat().st_mtime_ns if self._path.exists() else 0
        os.kill(broker, signal.SIGUSR1)
        until = time.monotonic() + WAIT
        while time.monotonic() < until:
            if self._path.exists() and self._path.stat().st_mtime_ns != before:
                return self.measure()
            time.sleep(0.1)
        raise click.ClickException(f"the broker has not written {self._path} in {WAIT:.0f} s")
