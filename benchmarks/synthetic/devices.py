# SPDX-License-Identifier: Apache-2.0
"""All synthetic devices of a benchmark, in one process with one epoll."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Sequence

from benchmarks.synthetic.device import Device

TICK = 0.25  # seconds between two checks of all devices, also of those without events
KEEP_ALIVE_EVERY = 20.0  # seconds
MOST_EVENTS = 256  # events that one poll returns
BACK_AFTER = 0.5  # seconds until a killed device is started again


class Devices:
    """Moves the packets of all devices, resumes each in turn, and starts killed devices again.

    Attributes:
        lost: connections that broke although the device was not killed.
    """

    def __init__(self, devices: Sequence[Device]) -> None:
        self._devices = devices
        self._epoll = select.epoll()
        self._by_socket: dict[int, Device] = {}
        self._writing: set[int] = set()
        self._back_at: dict[str, float] = {}  # time at which a killed device is started again, by name
        self._tick_due = self._keep_alive_due = 0.0
        self.lost = 0

    def start(self) -> None:
        """Connect all devices one after another, and serve those that are already connected."""
        for device in self._devices:
            self._start(device)
            self.serve(0)

    @property
    def have_finished(self) -> bool:
        return not self._by_socket and not self._back_at

    def run(self, goes_on: Callable[[], bool]) -> None:
        """Serve until every device has finished, or until `goes_on` returns False."""
        while not self.have_finished and goes_on():
            self.serve(TICK)

    def serve(self, timeout: float) -> None:
        """Wait for events, at most `timeout` seconds, and handle them."""
        for number, events in self._epoll.poll(timeout, MOST_EVENTS):
            if (device := self._by_socket.get(number)) is None:
                continue
            if events & ~select.EPOLLOUT:
                device.link.read()
            if events & select.EPOLLOUT:
                device.link.write()
            self._go_on(number, device, time.monotonic())
        now = time.monotonic()
        if now >= self._tick_due:
            self._tick(now)

    def _tick(self, now: float) -> None:
        self._tick_due = now + TICK
        keeps_alive = now >= self._keep_alive_due
        if keeps_alive:
            self._keep_alive_due = now + KEEP_ALIVE_EVERY
        for number, device in list(self._by_socket.items()):
            if keeps_alive:
                device.link.keep_alive()
            self._go_on(number, device, now)
        for device in self._devices:
            if self._back_at.get(device.name, now) < now:
                del self._back_at[device.name]
                self._start(device)

    def _start(self, device: Device) -> None:
        number = device.start()
        self._by_socket[number] = device
        self._epoll.register(number, select.EPOLLIN)
        self._watch(number, device)

    def _go_on(self, number: int, device: Device, now: float) -> None:
        device.go_on(now)
        if device.has_ended and not device.is_killed:
            device.link.disconnect()
        elif not device.link.is_up and not device.is_killed:
            self.lost += 1
            device.kill()
        if device.has_ended:
            del self._by_socket[number]
            self._writing.discard(number)
            if device.is_killed:
                self._back_at[device.name] = now + BACK_AFTER
        else:
            self._watch(number, device)

    def _watch(self, number: int, device: Device) -> None:
        """Have epoll watch for a writable socket only while the device has something to send."""
        if device.link.wants_to_write != (number in self._writing):
            self._writing ^= {number}
            writes = select.EPOLLOUT if number in self._writing else 0
            self._epoll.modify(number, select.EPOLLIN | writes)
