# SPDX-License-Identifier: Apache-2.0
"""What a device reports about itself: its status, profile and last will, and its status in systemd."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

from msgspec.structs import replace

from splitee.cli.systemd import notify
from splitee.cli.words import megabytes, size
from splitee.clock import Clock
from splitee.disk_writes import bytes_written
from splitee.errors import BrokerRefused, DataError, IdInUse
from splitee.mqtt.address import BrokerAddress
from splitee.mqtt.port import Port
from splitee.protocol import routes
from splitee.protocol.fields import Doing
from splitee.protocol.fleet import DeviceStatus, Profile
from splitee.protocol.topics import Topics
from splitee.protocol.traffic import Traffic
from splitee_device.machine.hardware import Fact, memory_limit, temperature
from splitee_device.machine.memory import resident

STATUS_EVERY = 1.0  # seconds, in a small fleet
STATUS_RATE = 100.0  # a second, of all devices together
SLOW_LINK = 500_000  # bytes a second

log = logging.getLogger(__name__)


class DevicePort(Port, Protocol):
    """A port that also reports the state of its connection."""

    @property
    def alive(self) -> bool:
        """Whether the network thread runs."""

    @property
    def refused(self) -> int:
        """Publications that the broker has refused."""

    @property
    def speed(self) -> float | None:
        """Bytes a second that the link has carried lately."""

    @property
    def busy(self) -> float:
        """Seconds so far in which something was being sent to the broker."""

    @property
    def address(self) -> BrokerAddress: ...


def offline(topics: Topics, device: str, instance: int) -> tuple[str, bytes]:
    """The last will and the offline message: the status that remains of a device that is gone."""
    status = DeviceStatus(state="offline", instance=instance)
    return routes.STATUS.topic(topics, device), status.encode()


class Presence:
    """One process of one device, as the fleet and systemd see it."""

    def __init__(
        self,
        port: DevicePort,
        topics: Topics,
        device: str,
        instance: int,
        clock: Clock,
        rejected: Callable[[], int],
        thermometer: Callable[[], Fact] = temperature,
        written: Callable[[], int | None] = bytes_written,
        traffic: Callable[[], Traffic] = Traffic,
        memory: Callable[[], int | None] = resident,
        memory_limit: Callable[[], int | None] = memory_limit,
    ) -> None:
        """`rejected`: the number of rejected messages so far. `thermometer`: degrees Celsius.

        `traffic`: what this process has sent and received; `written`: bytes that it has written to its disk.
        `memory`: bytes that it uses; `memory_limit`: bytes that it may use, read once.
        """
        self._port = port
        self._device = device
        self._instance = instance
        self._clock = clock
        self._rejected = rejected
        self._traffic = traffic
        self._thermometer = thermometer
        self._written = written
        self._memory = memory
        self._memory_limit = memory_limit()
        self._status_topic = routes.STATUS.topic(topics, device)
        self._profile_topic = routes.PROFILE.topic(topics, device)
        self._status = self._published = DeviceStatus(state="online", instance=instance)
        self._status_due, self._status_every = 0.0, STATUS_EVERY
        self._speed_checked_at, self._busy = clock(), 0.0
        self._has_seen_duplicate = False
        self._is_seen = False  # the broker has delivered this process's own status
        self.profile: Profile | None = None

    def report(
        self,
        doing: Doing,
        number: int,
        step: int = 0,
        steps: int = 0,
        loss: float | None = None,
        *,
        batches: int = 0,
        predicted: int = 0,
        offloaded: int = 0,
    ) -> None:
        """Set the status, and publish it if it is due (see `set_fleet_size`).

        In a small fleet it is also published at once when the device begins to do something else.

        Args:
            number: of the round.
            batches: published by this process.
            predicted, offloaded: images that it has classified, and those of them that it sent to the server.
        """
        is_due = self._clock() >= self._status_due
        changed = (doing, number) != (self._status.doing, self._status.round)
        self._status = DeviceStatus(
            state="online",
            instance=self._instance,
            doing=doing,
            round=number,
            step=step,
            steps=steps,
            loss=loss,
            batches=batches,
            rejected=self._rejected(),
            time=time.time(),
            predicted=predicted,
            offloaded=offloaded,
        )
        if is_due or (changed and self._status_every <= STATUS_EVERY):
            self.publish_status()

    def set_fleet_size(self, devices: int) -> None:
        """Share the rate of statuses among `devices`: one a second each for few devices, less for many."""
        self._status_every = max(STATUS_EVERY, devices / STATUS_RATE)

    def publish_status_if_due(self) -> None:
        """Publish the status, if it is due, while the device only sends."""
        if self._clock() >= self._status_due:
            self.publish_status()

    def introduce(self, profile: Profile) -> None:
        """Publish the profile, which is the request to join.

        Raises DataError: the broker takes no packet that is large enough for the names of its classes.
        """
        taken, most = len(profile.encode()), self._port.max_packet
        if taken > most:
            raise DataError(
                f"the {len(profile.class_names)} classes of this device make a profile of {size(taken)}, and "
                f"the broker takes at most {size(most)}: raise its limit, or shorten the names"
            )
        self.profile = profile
        self.publish_profile()

    def change_profile(self, **changed: Any) -> None:
        """Publish the profile again, with these fields changed."""
        assert self.profile is not None
        self.introduce(replace(self.profile, **changed))

    def publish_status(self) -> None:
        """Report what the device does, its memory, traffic and disk writes, to the fleet and to systemd."""
        degrees, traffic = self._thermometer().value, self._traffic()
        status = replace(
            self._status,
            temperature=degrees if isinstance(degrees, float) else None,
            written=self._written(),
            traffic=traffic,
            bytes=traffic.up.payload,
            upload=self._slow_speed(),
            memory=self._memory(),
            memory_limit=self._memory_limit,
        )
        self._port.publish(self._status_topic, status.encode(), retain=True)
        self._status_due = self._clock() + self._status_every
        self._published = status
        self.update_systemd()

    def _slow_speed(self) -> float | None:
        """The link's speed if it is slow and was busy most of the time since the last call; else None."""
        now, busy, speed = self._clock(), self._port.busy, self._port.speed
        is_busy = 2 * (busy - self._busy) > now - self._speed_checked_at
        self._speed_checked_at, self._busy = now, busy
        return speed if is_busy and speed is not None and speed < SLOW_LINK else None

    def update_systemd(self) -> None:
        """Set what `systemctl status` shows."""
        lost = "" if self._port.connected else f"; no connection to the broker {self._port.address}"
        notify(f"STATUS={_describe(self._published)}{lost}")

    def publish_profile(self) -> None:
        """Publish the current profile, if there is one."""
        if self.profile is not None:
            self._port.publish(self._profile_topic, self.profile.encode(), retain=True)

    def on_own_status(self, status: DeviceStatus) -> None:
        """Handle a change of the status that the broker retains for this device.

        Raises:
            IdInUse: a process that started later uses this device's id.
        """
        if status.instance == self._instance:
            self._is_seen = True
        elif self._is_seen and (status.state == "online" or status.instance < self._instance):
            self._on_duplicate_id(later=status.instance > self._instance)
        if self._is_seen and status.state == "offline":  # a duplicate's, or the will of a broken connection
            self.publish_status()

    def _on_duplicate_id(self, *, later: bool) -> None:
        """Another process uses this device's id: the one that started earlier ends."""
        advice = "give each machine an id of its own, and a certificate of its own if there are certificates"
        if later:
            raise IdInUse(
                f"another process has started with the id {self._device!r}, and this one ends: if the other "
                f"is on a copy of this machine's card, {advice}"
            )
        if not self._has_seen_duplicate:
            log.warning(
                "another process that started earlier has the id %r: it ends now; if it is on a copy of this "
                "machine's card, %s",
                self._device,
                advice,
            )
        self._has_seen_duplicate = True

    def check_identity(self) -> None:
        """Raises BrokerRefused: the broker accepts nothing from this client under this device's id."""
        if self._port.refused and not self._is_seen:
            raise BrokerRefused(
                f"broker {self._port.address} lets this client in, but not as {self._device!r}: "
                "does its certificate or account belong to another device?"
            )


def _describe(status: DeviceStatus) -> str:
    words = f"round {status.round}: {status.doing}"
    if status.steps:
        words += f", step {status.step} of {status.steps}"
    if status.loss is not None:
        words += f", loss {status.loss:.4f}"
    return words if status.written is None else f"{words}; {megabytes(status.written)} MB written"
