# SPDX-License-Identifier: Apache-2.0
"""Receives a fleet's messages from the broker, retained and new ones, on a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import closing

import msgspec

from splitee.cli.plain_text import plain
from splitee.errors import BrokerUnreachable, SpliteeError
from splitee.log_limits import SELDOM, FirstFew
from splitee.mqtt.backoff import delays
from splitee.mqtt.events import Disconnected, Message, Overflow
from splitee.mqtt.link import Link
from splitee.mqtt.options import LinkOptions
from splitee.protocol.fleet_view import FleetView
from splitee.protocol.viewer_link import viewer_link
from splitee_web.fleet.changes import BrokerState, ChangeDetector, Changes
from splitee_web.fleet.event_log import Event, Kind

PERIOD = 0.5  # seconds between two updates; messages in between are handled together, which saves CPU time
SETTLE_TIME = 2.0  # seconds after the first connection until the broker has sent its retained messages
GATHER = 0.02  # seconds between two readings: a broker may send no more than 20 messages until they are read
CONNECT_TIMEOUT = 5.0  # seconds to reach the broker before the page shows why it is not
LONGEST_PAUSE = 15.0  # seconds between two tries
STABLE = 30.0  # seconds that a connection must last for its loss to count as the first one again

log = logging.getLogger(__name__)


class Feed:
    """Reports what has changed in a fleet, twice a second. It publishes nothing."""

    def __init__(self, options: LinkOptions, on_changes: Callable[[Changes], None]) -> None:
        """`on_changes` is called on the thread that calls `run`.

        Raises:
            ConfigError: the files for TLS are none, or do not fit the address.
        """
        self._options = options
        self._on_changes = on_changes
        self._view = FleetView(options.fleet)
        self._detector = ChangeDetector(self._view)
        self._stop = threading.Event()
        self._log_lost = FirstFew(SELDOM)
        self._broker: BrokerState | None = None
        self._settles: float | None = None  # by the monotonic clock
        self._new_link()

    def stop(self) -> None:
        self._stop.set()

    def run(self) -> None:
        """Run until `stop`. A broker that is away, or refuses the connection, is tried again for ever."""
        self._report_connection(connected=False, text=f"connecting to {self._options.address}")
        pauses = delays(longest=LONGEST_PAUSE)
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                with closing(self._new_link()) as link:
                    reason = self._follow(link) if self._reach(link) else ""
            except SpliteeError as error:
                reason = str(error)
            if self._stop.is_set():
                return
            if self._log_lost.due():
                log.warning("broker %s: %s", self._options.address, reason)
            self._report_connection(connected=False, text=reason)
            if time.monotonic() - began > STABLE:
                pauses = delays(longest=LONGEST_PAUSE)
            self._stop.wait(next(pauses))

    def _new_link(self) -> Link:
        """A new link in place of one that was lost or refused: the files for TLS may have changed."""
        link = viewer_link(self._options, "page", read_delay=GATHER)
        link.subscribe(*self._view.filters)
        return link

    def _reach(self, link: Link) -> bool:
        """Wait until the broker is connected; False: `stop` came first.

        Raises:
            BrokerRefused: it refuses the connection.
        """
        pauses = delays(longest=LONGEST_PAUSE)
        while not self._stop.is_set():
            try:
                link.open(CONNECT_TIMEOUT)
            except BrokerUnreachable as error:
                self._report_connection(connected=False, text=str(error))
                self._stop.wait(next(pauses))
            else:
                return True
        return False

    def _follow(self, link: Link) -> str:
        """Handle messages until the connection is lost; returns the reason.

        Raises:
            BrokerRefused: the broker denies a subscription.
        """
        self._report_connection(connected=True, text=f"connected to {self._options.address}")
        if self._settles is None:
            self._settles = time.monotonic() + SETTLE_TIME
        reason = ""
        while not reason and not self._stop.wait(PERIOD):
            reason = self._read_messages(link)
            self._send_changes()
        return reason

    def _read_messages(self, link: Link) -> str:
        """Handle the messages that have arrived; returns why the connection must be made anew, or ""."""
        until = time.monotonic() + PERIOD
        while (event := link.receive(0)) is not None:
            if isinstance(event, Message):
                self._view.take(event, time.time())
            elif isinstance(event, Disconnected):
                return event.reason
            elif isinstance(event, Overflow):
                return "more messages came than can be read"
            if time.monotonic() > until:
                break
        return ""

    def _send_changes(self) -> None:
        is_settled = self._settles is not None and time.monotonic() >= self._settles
        changes = self._detector.poll(time.time(), is_settled=is_settled)
        if changes != Changes():
            self._on_changes(changes)

    def _report_connection(self, *, connected: bool, text: str) -> None:
        """Send the state of the connection; `since` is when it changed last, not when its text did."""
        before, now = self._broker, time.time()
        is_same = before is not None and before.connected == connected
        self._broker = BrokerState(connected, before.since if before and is_same else now, plain(text))
        if self._broker == before:
            return
        self._on_changes(Changes(broker=msgspec.json.encode(self._broker)))
        if is_same or before is None or self._settles is None:
            return
        kind: Kind = "broker-online" if connected else "broker-offline"
        self._detector.note(Event(now, kind, None, self._broker.text))
        self._send_changes()
