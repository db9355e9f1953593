# SPDX-License-Identifier: Apache-2.0
"""All synthetic devices of a benchmark: one process, one epoll."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Sequence

from benchmarks.synthetic.device import Device

TICK = 0.25  # seconds between two looks at those devices for whom nothing has come
KEEP_ALIVE_EVERY = 20.0  # seconds
SOME = 256  # devices that are served between two looks at the clock
BACK_AFTER = 0.5  # seconds until a device that has vanished is back


class Devices:
    """Moves the packets of all devices, gives each its turn, and starts those again that have vanished.

    Attributes:
        lost: connections that broke without a device having been killed.
    """

    def __init__(self, devices: Sequence[Device]) -> None:
        self._devices = devices
        self._epoll = select.epoll()
        self._by_socket: dict[int, Device] = {}
        self._writing: set[int] = set()
        self._back_at: dict[str, float] = {}  # devices that are away, by name
        self._tick_due = self._keep_alive_due = 0.0
        self.lost = 0

    def start(self) -> None:
        """Connect all, one after the other, those that are connected meanwhile being served."""
        for device in self._devices:
            self._start(device)
            self.serve(0)

    @property
    def have_finished(self) -> bool:
        return not self._by_socket and not self._back_at

    def run(self, goes_on: Callable[[], bool]) -> None:
        """Serve until every device has finished, or for as long as it `goes_on`."""
        while not self.have_finished and goes_on():
            self.serve(TICK)

    def serve(self, timeout: float) -> None:
        """What has come within so many seconds."""
        for number, events in self._epoll.poll(timeout, SOME):
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
        """Watch for room to write by epoll only where something is to be written."""
        if device.link.wants_to_write != (number in self._writing):
            self._writing ^= {number}
            writes = select.EPOLLOUT if number in self._writing else 0
            self._epoll.modify(number, select.EPOLLIN | writes)
