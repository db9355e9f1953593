# SPDX-License-Identifier: Apache-2.0
"""A device's network with a slow, distant and lossy link to the broker, without the kernel's netem."""

from __future__ import annotations

import fcntl
import heapq
import itertools
import os
import random
import select
import struct
import threading
import time
from dataclasses import dataclass

from benchmarks.device_network import delete_namespace, ip, namespace_of

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
FRAME = 1 << 16  # bytes, at most
QUEUE = 0.5  # seconds, the longest wait of a frame for the link; with a longer one it is lost


@dataclass(frozen=True)
class LinkKind:
    """`rate`: bits per second each way. `round_trip`: seconds. `loss`: share of the packets each way."""

    rate: float
    round_trip: float
    loss: float


class SlowNamespace:
    """A network namespace for a device, behind two tap devices; this process forwards frames between them.

    Both ends use the kernel's TCP, so lost packets are detected and sent again as in the field.
    """

    kind = "namespace"
    _numbers = itertools.count(1)

    def __init__(self, port: int, link: LinkKind) -> None:
        number = next(self._numbers)
        self._name = f"splitee-slow-{os.getpid()}-{number}"
        near, far = f"sn{os.getpid() % 9999}n{number}", f"sn{os.getpid() % 9999}f{number}"
        network = f"10.{150 + os.getpid() % 50}.{number}"
        self._taps = _tap(near), _tap(far)
        self._link = link
        self._random = random.Random(number)
        namespace_of(self._name, near, far, network)
        ip("route", "change", f"{network}.0/24", "dev", near, "congctl", "cubic")
        ip("-n", self._name, "route", "change", f"{network}.0/24", "dev", far, "congctl", "cubic")
        self.host = f"{network}.1"
        self.address = f"mqtt://{self.host}:{port}"
        self.prefix: tuple[str, ...] = ("ip", "netns", "exec", self._name)
        self._near = near
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def cut(self) -> None:
        ip("link", "set", self._near, "down")

    def mend(self) -> None:
        ip("link", "set", self._near, "up")

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        delete_namespace(self._name)
        for tap in self._taps:
            os.close(tap)

    def _carry(self) -> None:
        """Forward each frame half a round trip after it was sent at the link's rate, in order."""
        under_way: list[tuple[float, int, int, bytes]] = []  # due time, number, target tap, frame
        free_at, numbers = [0.0, 0.0], itertools.count()
        while not self._closing.is_set():
            pause = max(0.0, min(0.1, under_way[0][0] - time.monotonic())) if under_way else 0.1
            for tap in select.select(self._taps, [], [], pause)[0]:
                side = self._taps.index(tap)
                frame, now = os.read(tap, FRAME), time.monotonic()
                start = max(now, free_at[side])
                if self._random.random() < self._link.loss or start - now > QUEUE:
                    continue
                free_at[side] = start + 8 * len(frame) / self._link.rate
                due = free_at[side] + self._link.round_trip / 2
                heapq.heappush(under_way, (due, next(numbers), self._taps[1 - side], frame))
            while under_way and under_way[0][0] <= time.monotonic():
                _, _, tap, frame = heapq.heappop(under_way)
                os.write(tap, frame)


def _tap(name: str) -> int:
    """A descriptor that reads and writes the frames of a new tap device."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return descriptor
