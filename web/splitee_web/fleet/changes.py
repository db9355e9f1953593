# SPDX-License-Identifier: Apache-2.0
"""What has changed in a fleet since the last update, encoded once for all browsers."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from typing import Any

import msgspec

from splitee.protocol.fleet_view import DeviceView, FleetSnapshot, FleetView
from splitee.token_buckets import TokenBuckets
from splitee_web.fleet.event_log import (
    Event,
    events_at_start,
    events_of_device,
    events_of_fleet,
    events_of_past,
)

SUMS_EVERY = 5.0  # seconds between two updates of sums over all devices
MOST_EVENTS = 500  # of one update
BURST = 20  # events of one device at once, so that none fills the fleet's log
EVENT_EVERY = 60.0  # after which it may have one more

_DEVICE = tuple(each.name for each in fields(DeviceView))
_FLEET = tuple(each.name for each in fields(FleetSnapshot) if each.name != "devices")
_values = attrgetter(*_DEVICE)
_NONE = (object(),) * len(_DEVICE)  # differs from every device's
_encode = msgspec.json.Encoder().encode


class BrokerState(msgspec.Struct, frozen=True):
    """Whether the broker is connected, since when (seconds since the epoch), and why not, in one line."""

    connected: bool
    since: float
    text: str


@dataclass(frozen=True)
class Changes:
    """What has changed, mostly in JSON; what has not changed is None or empty.

    Attributes:
        fleet: the snapshot without its devices.
        devices: those that changed, by id.
        rows: of each of these, the id and the fields that changed.
        gone: devices that are no longer in the fleet.
        events: what has happened, the oldest first.
        broker: the state of the connection.
    """

    fleet: bytes | None = None
    devices: dict[str, DeviceView] = field(default_factory=dict)
    rows: tuple[bytes, ...] = ()
    gone: tuple[str, ...] = ()
    events: tuple[bytes, ...] = ()
    broker: bytes | None = None


class ChangeDetector:
    """Compares a fleet with its last state; the cost is that of what has changed since."""

    def __init__(self, view: FleetView) -> None:
        self._view = view
        self._devices: dict[str, DeviceView] = {}
        self._bare = self._fleet = view.overview(())
        self._encoded = b""
        self._summed = float("-inf")
        self._events: list[Event] = []
        self._limits = TokenBuckets(1 / EVENT_EVERY, BURST)

    def note(self, event: Event) -> None:
        """Add an event that follows from no message."""
        self._events.append(event)

    def poll(self, now: float, *, is_settled: bool) -> Changes:
        """What has changed by `now`, in seconds since the epoch.

        `is_settled`: the broker has sent its retained messages, so that further devices are new.
        """
        found = self._view.changes()
        whole, rows, gone = {}, [], []
        for device, after in found.items():
            before = self._devices.get(device)
            if after is None:
                if before is not None:
                    del self._devices[device]
                    gone.append(device)
                continue
            changed = _changed(before, after) if after is not before else {}
            if not changed:
                continue
            self._devices[device] = whole[device] = after
            rows.append(_encode({"id": device, **changed}))
            is_at_start = before is None and not is_settled
            events = events_at_start(after) if is_at_start else events_of_device(before, after, now)
            self._events += (event for event in events if self._limits.take(device, now))
        fleet = self._poll_fleet(now, is_settled=is_settled)
        newest, self._events = self._events[-MOST_EVENTS:], []
        newest.sort(key=lambda event: event.time)
        return Changes(fleet, whole, tuple(rows), tuple(gone), tuple(map(_encode, newest)))

    def _poll_fleet(self, now: float, *, is_settled: bool) -> bytes | None:
        bare = self._view.overview(())
        if bare == self._bare and abs(now - self._summed) < SUMS_EVERY:
            return None
        self._bare = bare
        self._summed = now
        after = replace(self._view.overview(list(self._devices.values())), devices=())
        if is_settled:
            self._events += events_of_fleet(self._fleet, after, now)
        elif self._fleet.run is None:
            self._events += events_of_past(after)
        self._fleet = after
        encoded = encode_fleet(after)
        if encoded == self._encoded:
            return None
        self._encoded = encoded
        return encoded


def _changed(before: DeviceView | None, after: DeviceView) -> dict[str, Any]:
    """The fields of `after` that differ from those of `before`."""
    values = zip(_DEVICE, _values(after), _values(before) if before else _NONE, strict=True)
    return {name: new for name, new, old in values if new is not old and new != old}


def encode_fleet(snapshot: FleetSnapshot) -> bytes:
    """JSON without the devices and their metrics, which are in each device's own row."""
    found = {name: getattr(snapshot, name) for name in _FLEET}
    if snapshot.metrics is not None:
        found["metrics"] = msgspec.structs.replace(snapshot.metrics, devices={})
    return _encode(found)
