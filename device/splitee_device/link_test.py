"""Measures the link to the broker by this device's own echo topic: what counts has come back unharmed."""

from __future__ import annotations

import itertools
import logging
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from statistics import median

from splitee.errors import BrokerRefused
from splitee.link import Link, Message
from splitee.link_options import LinkOptions
from splitee.parts import split
from splitee.topics import Topics
from splitee_device.predict_cost import LinkSpeed

PINGS = 10
PING_BYTES = 64
FIRST_BYTES = 64 << 10  # of the payload that tells how large the next may be
PAYLOADS = 5
LONGEST = 3.0  # seconds that one payload should take at most
PATIENCE = 10.0  # seconds until an echo counts as lost

log = logging.getLogger(__name__)


class EchoLost(Exception):
    """What was sent did not come back."""


class Echo:
    """Two connections: one publishes, the other reads the same topic.

    On a single one, the broker's acknowledgement would queue behind the echo, and time both directions.
    """

    def __init__(self, out: Link, back: Link, topic: str) -> None:
        self._out = out
        self._back = back
        self._topic = topic
        self._numbers = itertools.count(1)

    def speed(self, size: int) -> LinkSpeed | None:
        """The link's speed with payloads of `size` bytes, as many as LONGEST allows; None: no echo came."""
        try:
            pings = [self._send(PING_BYTES) for _ in range(PINGS)]
            accepted, returned = (median(times) for times in zip(*pings, strict=True))
            first = min(size, FIRST_BYTES)
            rate = first / self._seconds(first, accepted)
            fitting = max(first, min(size, int(rate * LONGEST)))
            seconds = [self._seconds(fitting, accepted) for _ in range(PAYLOADS)]
        except (EchoLost, BrokerRefused) as lost:
            log.warning("link not measured: %s", lost)
            return None
        return LinkSpeed(upload=fitting / median(seconds), round_trip=returned)

    def _seconds(self, size: int, overhead: float) -> float:
        """Seconds for the bytes alone: `overhead` is what the smallest message takes."""
        accepted, _ = self._send(size)
        return max(accepted - overhead, accepted / 10)

    def _send(self, size: int) -> tuple[float, float]:
        """Seconds until the broker has all `size` bytes, and until all of them are back."""
        parts = list(split(os.urandom(size), self._out.max_packet, next(self._numbers)))
        started = time.monotonic()
        taken = all(self._out.publish(self._topic, part) for part in parts) and self._out.flush(PATIENCE)
        accepted = time.monotonic() - started
        if not taken or self._out.refused:
            raise EchoLost(
                f"the broker does not take {size} bytes on {self._topic}; "
                "is --id the name of this client's account or certificate?"
            )
        missing = set(parts)
        while missing:
            event = self._back.receive(max(started + accepted + PATIENCE - time.monotonic(), 0))
            if event is None:
                raise EchoLost(f"the broker took {size} bytes on {self._topic}, but does not return them")
            if isinstance(event, Message):
                missing.discard(event.payload)
        return accepted, time.monotonic() - started


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
