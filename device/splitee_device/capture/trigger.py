# SPDX-License-Identifier: Apache-2.0
"""A message that causes a device to take images, such as one from a motion sensor."""

from __future__ import annotations

import logging
import time

from splitee.clock import Clock
from splitee.mqtt.events import Message
from splitee.mqtt.rate_limiter import RateLimiter
from splitee_device.capture.pace import Pace

FLOOD = 10  # triggers in a second from which on a warning is logged
SECOND = 1.0

log = logging.getLogger(__name__)


class Trigger:
    """Passes messages on a topic to a pace. Triggers before the next image count as one.

    Attributes:
        count: number of triggers so far.
    """

    def __init__(self, topic: str, payload: str | None, pace: Pace, *, clock: Clock = time.monotonic) -> None:
        """`payload`: that a message must have; None: any message counts."""
        self.topic = topic
        self.count = 0
        self._payload = None if payload is None else payload.encode()
        self._pace = pace
        self._clock = clock
        self._second, self._in_second = clock(), 0
        self._log_flood = RateLimiter()

    def take(self, message: Message) -> bool:
        """Whether the message is on the topic. Retained ones do not trigger: they describe the past."""
        if message.topic != self.topic:
            return False
        if not message.retained and self._payload in {None, message.payload}:
            self.count += 1
            self._pace.trigger()
            self._watch_for_flood()
        return True

    def _watch_for_flood(self) -> None:
        now = self._clock()
        if now - self._second >= SECOND:
            self._second, self._in_second = now, 0
        self._in_second += 1
        if self._in_second == FLOOD and self._log_flood.due():
            log.warning("--on-topic %s: %d triggers within a second; they count as one", self.topic, FLOOD)
