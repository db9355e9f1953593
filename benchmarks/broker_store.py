# SPDX-License-Identifier: Apache-2.0
"""The sessions that a Mosquitto keeps for disconnected clients, and the size of its database on disk."""

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
LARGEST_STORE = 10_000_000  # bytes that the database of a fleet's broker may have
WAIT = 15.0  # seconds
SETTLED = 1.5 * (INTERVAL + 1)  # seconds; Mosquitto updates them after more than INTERVAL whole seconds


def keeping(settings: str, directory: Path) -> str:
    """Mosquitto's settings, with a database in `directory`."""
    persistent = settings.replace("persistence false", f"persistence true\npersistence_location {directory}/")
    as_root = "user root\n" if os.geteuid() == 0 else ""  # Mosquitto's own account could not write there
    return persistent + SETTINGS + as_root


def abandoned_sessions(address: BrokerAddress) -> int:
    """Number of sessions that the broker keeps for disconnected clients.

    Mosquitto publishes a count only if it has changed, so the counts are current after an update without any.
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
    """The broker's database file; `largest`: its largest measured size in bytes."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "mosquitto.db"
        self.largest = 0

    def measure(self) -> int:
        size = self._path.stat().st_size if self._path.exists() else 0
        self.largest = max(self.largest, size)
        return size

    def saved(self, broker: int) -> int:
        """Make the broker with this process id save its database; return its size in bytes.

        Raises ClickException: the database was not written within WAIT.
        """
        before = self._path.stat().st_mtime_ns if self._path.exists() else 0
        os.kill(broker, signal.SIGUSR1)
        until = time.monotonic() + WAIT
        while time.monotonic() < until:
            if self._path.exists() and self._path.stat().st_mtime_ns != before:
                return self.measure()
            time.sleep(0.1)
        raise click.ClickException(f"the broker has not written {self._path} in {WAIT:.0f} s")
