# SPDX-License-Identifier: Apache-2.0
"""Measures the link to the broker through this device's own echo topic: only payloads that return count."""

from __future__ import annotations

import itertools
import logging
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from statistics import median
from typing import NamedTuple

from splitee.errors import BrokerRefused
from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.mqtt.options import LinkOptions
from splitee.protocol.parts import split
from splitee.protocol.topics import Topics
from splitee_device.profiler.cost_model import LinkSpeed

PINGS = 10
PING_BYTES = 64
FIRST_BYTES = 64 << 10  # of the payload that determines how large the next may be
PAYLOADS = 5
LONGEST = 3.0  # longest seconds that one payload should take
PATIENCE = 10.0  # seconds until an echo counts as lost

log = logging.getLogger(__name__)


class EchoLost(Exception):
    """A message that was sent did not come back."""


class Sent(NamedTuple):
    """For one message: seconds until the broker has it, seconds until it is back, CPU seconds to send it."""

    accepted: float
    returned: float
    cpu: float

    def beyond(self, ping: Sent) -> float:
        """Seconds for the bytes alone, without the seconds of a `ping`, which every message needs."""
        return max(self.accepted - ping.accepted, self.accepted / 10)


class Echo:
    """Two connections: one publishes, the other reads the same topic.

    On a single connection, the broker's acknowledgement would queue behind the echo and time both directions.
    """

    def __init__(self, out: Link, back: Link, topic: str) -> None:
        self._out = out
        self._back = back
        self._topic = topic
        self._numbers = itertools.count(1)

    def speed(self, size: int) -> LinkSpeed | None:
        """The link's speed with payloads of `size` bytes, or what LONGEST allows; None: no echo came."""
        try:
            ping = self._typical(PING_BYTES, PINGS)
            first = min(size, FIRST_BYTES)
            rate = first / self._typical(first, 1).beyond(ping)
            fitting = max(first, min(size, int(rate * LONGEST)))
            payload = self._typical(fitting, PAYLOADS)
        except (EchoLost, BrokerRefused) as lost:
            log.warning("link not measured: %s", lost)
            return None
        return LinkSpeed(
            upload=fitting / payload.beyond(ping),
            round_trip=ping.returned,
            message_cpu=ping.cpu,
            byte_cpu=max(payload.cpu - ping.cpu, 0.0) / fitting,
        )

    def _typical(self, size: int, times: int) -> Sent:
        sent = [self._send(size) for _ in range(times)]
        return Sent(*(median(values) for values in zip(*sent, strict=True)))

    def _send(self, size: int) -> Sent:
        parts = list(split(os.urandom(size), self._out.max_packet, next(self._numbers)))
        started, cpu = time.monotonic(), time.thread_time() + self._out.cpu
        taken = all(self._out.publish(self._topic, part) for part in parts) and self._out.flush(PATIENCE)
        accepted, cpu = time.monotonic() - started, time.thread_time() + self._out.cpu - cpu
        if not taken or self._out.refused:
            raise EchoLost(
                f"the broker does not accept {size} bytes on {self._topic}; "
                "is --id the name of this client's account or certificate?"
            )
        missing = set(parts)
        while missing:
            event = self._back.receive(max(started + accepted + PATIENCE - time.monotonic(), 0))
            if event is None:
                raise EchoLost(f"the broker accepted {size} bytes on {self._topic}, but does not return them")
            if isinstance(event, Message):
                missing.discard(event.payload)
        return Sent(accepted, time.monotonic() - started, cpu)


@contextmanager
def open_echo(options: LinkOptions, device: str) -> Iterator[Echo]:
    """Connections for the echo topic of `device`. Raises BrokerUnreachable, BrokerRefused."""
    topic = Topics(options.fleet).device(device, "echo")
    name = f"splitee-{options.fleet}-{device}-echo-{secrets.token_hex(4)}"
    with (
        closing(Link(options.address, f"{name}-out", tls=options.tls)) as out,
        closing(Link(options.address, f"{name}-back", tls=options.tls)) as back,
    ):
        back.subscribe(topic)
        for link in (out, back):
            link.open(options.connect_timeout)
        yield Echo(out, back, topic)
