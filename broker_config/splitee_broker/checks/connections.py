# SPDX-License-Identifier: Apache-2.0
"""How many connections the broker accepts at once, and which side refuses the next one."""

from __future__ import annotations

import contextlib
import resource
import select
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from splitee.mqtt.websockets import raw_socket
from splitee_broker.checks.bare_connection import Refused, connect
from splitee_broker.checks.base import Check, Result
from splitee_broker.checks.client import tls_context
from splitee_broker.checks.context import CheckContext

TRIES = 16  # connections that are opened at the same time
UNLIMITED = 1 << 20
OWN_DESCRIPTORS = 64  # descriptors that this process needs for everything else


def run(context: CheckContext) -> Result:
    wanted = context.devices
    room = _descriptors() - OWN_DESCRIPTORS
    if room < wanted:
        return Result(
            "unknown",
            f"this process may have {room:,} connections: raise its limit of descriptors (ulimit -n)",
            room,
            wanted,
        )
    attempt = Attempt(context, tls_context(context.link) if context.link.address.tls else None)
    try:
        attempt.open(wanted)
        held = attempt.still_open()
    finally:
        attempt.close()
    if (failure := attempt.failure) is not None:
        end = "this machine" if failure.is_local else "the broker"
        found = f"{held:,} of {wanted:,}, then {end} refused: {failure}"
        return Result("unknown" if failure.is_local else "missing", found, held, wanted)
    if attempt.is_late:
        return Result("unknown", f"only {held:,} of {wanted:,} are there in time", held, wanted)
    if held < wanted:
        return Result(
            "missing", f"{held:,} of {wanted:,}: the broker closed some to accept others", held, wanted
        )
    return Result("ok", f"{held:,} connections at once", held, wanted)


def _descriptors() -> int:
    """The number that this process may have, after raising its own limit as far as the system allows."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    now, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return UNLIMITED if now == resource.RLIM_INFINITY else now


@dataclass
class Attempt:
    """Opens connections until there are enough or one is refused."""

    context: CheckContext
    tls: ssl.SSLContext | None
    opened: list[socket.socket] = field(default_factory=list)
    failure: Refused | None = None
    is_late: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def open(self, count: int) -> None:
        with ThreadPoolExecutor(TRIES) as pool:
            for _ in pool.map(self._one, range(count)):
                if len(self.opened) % 50 == 0:
                    self.context.progress(f"{len(self.opened):,} of {count:,} connections")

    def _one(self, number: int) -> None:
        self.is_late = self.is_late or self.context.left() <= 0
        if self.failure is not None or self.is_late:
            return
        try:
            connection = connect(self.context.link.address, self.context.client_id(f"n{number}"), self.tls)
        except Refused as refused:
            with self._lock:
                self.failure = self.failure or refused
            return
        with self._lock:
            self.opened.append(connection)

    def still_open(self) -> int:
        """How many the broker has not closed. It has sent nothing since, so readable ones are closed."""
        poll = select.poll()
        for connection in self.opened:
            poll.register(raw_socket(connection), select.POLLIN)
        closed = {number for number, _ in poll.poll(0)}
        return sum(connection.fileno() not in closed for connection in self.opened)

    def close(self) -> None:
        for connection in self.opened:
            with contextlib.suppress(OSError):
                connection.send(b"\xe0\x00")  # DISCONNECT
        for connection in self.opened:
            raw_socket(connection).close()
        self.opened.clear()


CHECK = Check("connections", run, seconds=10.0, seconds_a_device=0.03)
