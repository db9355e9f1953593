# SPDX-License-Identifier: Apache-2.0
"""Sends the full state to a new browser, and changes to all browsers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable

import msgspec

from splitee.protocol.fleet_view import DeviceView
from splitee_web.event_streams import Event, EventStreams
from splitee_web.fleet.changes import MOST_EVENTS, Changes


class Broadcaster:
    """The last state of everything; only on the event loop's thread."""

    def __init__(self, streams: EventStreams, fleet: bytes) -> None:
        """`fleet`: the first snapshot."""
        self._streams = streams
        self._fleet = fleet
        self._devices: dict[str, DeviceView] = {}
        self._events: deque[bytes] = deque(maxlen=MOST_EVENTS)
        self._broker = b"null"

    def take(self, changes: Changes) -> None:
        """Keep what has changed, and send it to every browser."""
        if changes.broker is not None:
            self._broker = changes.broker
            self._send("broker", changes.broker)
        if changes.fleet is not None:
            self._fleet = changes.fleet
            self._send("fleet", changes.fleet)
        if changes.rows:
            self._devices.update(changes.devices)
            self._send("devices", _array(changes.rows))
        if changes.gone:
            for device in changes.gone:
                self._devices.pop(device, None)
            self._send("gone", _array(b'"%b"' % device.encode() for device in changes.gone))
        if changes.events:
            self._events.extend(changes.events)
            self._send("log", _array(changes.events))

    def whole(self) -> bytes:
        """{now, fleet: the snapshot with its devices, log, broker}."""
        devices = msgspec.json.encode([view for _, view in sorted(self._devices.items())])
        fleet = self._fleet.removesuffix(b"}") + b',"devices":' + devices + b"}"
        log = _array(self._events)
        return b'{"now":%b,"fleet":%b,"log":%b,"broker":%b}' % (_now(), fleet, log, self._broker)

    def first(self) -> list[Event]:
        """The first events of a stream."""
        return [("whole", self.whole())]

    def _send(self, name: str, value: bytes) -> None:
        if len(self._streams):
            self._streams.send(name, b'{"now":%b,"%b":%b}' % (_now(), name.encode(), value))


def _array(values: Iterable[bytes]) -> bytes:
    return b"[" + b",".join(values) + b"]"


def _now() -> bytes:
    return b"%.3f" % time.time()
