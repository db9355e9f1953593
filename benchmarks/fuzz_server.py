# SPDX-License-Identifier: Apache-2.0
"""Fuzzes the server's event handler: no message of a member may end the server.

    python -m benchmarks.fuzz_server [-max_total_time=60] [CORPUS]

A server trains a round on a fake port, with three members that have joined and stay silent. libFuzzer
(atheris) plays one of them: the first byte of an input selects the topic, the second the envelope, and the
rest is the payload. An input that ends the server's loop is a finding, and is written to ./crash-*. The flags
are libFuzzer's. CORPUS is a folder of inputs to which new ones are added, such as benchmarks/corpus/server.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import threading
from pathlib import Path

import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

with atheris.instrument_imports(include=["splitee", "splitee_server"]):
    from virtual_fleet import TOPICS, VirtualFleet  # type: ignore[import-not-found]

    from splitee.mqtt.events import Event, Message
    from splitee.protocol.routes import ROUTES
    from splitee_server.rounds.policy import Policy

EVIL = "zoe"
WRITTEN = tuple(route for route in ROUTES if "server" in route.readers)
RETAINED, HAS_TOPIC, OWN_INBOX, HAS_CORRELATION, LONG_CORRELATION = (1 << bit for bit in range(5))


class Feed:
    """Passes events to the server's loop, one at a time, and waits until each is processed."""

    def __init__(self, fleet: VirtualFleet) -> None:
        self._fleet = fleet
        self._receive_queued = fleet.port.receive  # events of the members that join
        self._event: Event | None = None
        self._is_given = threading.Semaphore(0)
        self._is_idle = threading.Semaphore(0)
        self._failure: BaseException | None = None
        fleet.port.receive = self._receive
        threading.Thread(target=self._serve, daemon=True).start()
        self._is_idle.acquire()

    def give(self, event: Event) -> None:
        """Process one event; raise the error that has ended the server's loop, if any."""
        self._event = event
        self._is_given.release()
        self._is_idle.acquire()
        if self._failure is not None:
            raise self._failure

    def _serve(self) -> None:
        try:
            self._fleet.run()
        except BaseException as error:
            self._failure = error
        self._is_idle.release()

    def _receive(self, timeout: float | None) -> Event | None:
        if self._fleet.port.has_events:
            event: Event | None = self._receive_queued(timeout)
            return event
        if timeout == 0:
            return None
        self._is_idle.release()
        self._is_given.acquire()
        return self._event


def message(data: bytes) -> Message:
    """The message that an input describes."""
    route, flags = WRITTEN[data[0] % len(WRITTEN)], data[1]
    topic = None
    if flags & HAS_TOPIC:
        topic = TOPICS.device(EVIL, "inbox/answer" if flags & OWN_INBOX else "inbox/+")
    correlation = b"1" * (2000 if flags & LONG_CORRELATION else 8) if flags & HAS_CORRELATION else None
    return Message(
        route.topic(TOPICS, EVIL),
        data[2:],
        retained=bool(flags & RETAINED),
        response_topic=topic,
        correlation=correlation,
    )


def main() -> None:
    logging.disable()
    fleet = VirtualFleet(
        Path(tempfile.mkdtemp()), "pi-1", "pi-2", EVIL, policy=Policy(3, 1, quarantine_after=0)
    )
    for device in fleet.devices.values():
        device.before_batch = lambda *_, device=device: device.pause()
    feed = Feed(fleet)

    def fuzz(data: bytes) -> None:
        if len(data) >= 2:
            feed.give(message(data))

    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
