# SPDX-License-Identifier: Apache-2.0
"""Limits on the number of messages of a device: above what a device needs, and low enough to serve others."""

from __future__ import annotations

import threading
import time
from collections import Counter

from splitee.clock import Clock
from splitee.protocol.routes import INSTALL
from splitee.protocol.topics import NAME, Topics
from splitee.token_buckets import TokenBuckets

RATE = 1000.0  # messages a second; a device sends a batch for each that the server has trained
BURST = 1000  # messages at once
INSTALL_BUCKET = "+/install"  # Home Assistant's clicks share one bucket, and count against no device


class SenderLimits:
    """A token bucket for each device, checked on the link's thread before a message takes any memory."""

    def __init__(
        self, topics: Topics, *, rate: float = RATE, burst: int = BURST, clock: Clock = time.monotonic
    ) -> None:
        self._prefix = f"{topics.base}/devices/"
        self._clock = clock
        self._buckets = TokenBuckets(rate, burst)
        self._refused: Counter[str] = Counter()
        self._lock = threading.Lock()

    def admits(self, topic: str) -> bool:
        """Whether a message on this topic is within its sender's rate; it counts as sent.

        Nothing is admitted from, or kept of, a sender whose name no device may have.
        """
        if not topic.startswith(self._prefix):
            return True
        device, _, leaf = topic[len(self._prefix) :].partition("/")
        if not NAME.fullmatch(device):
            return False
        if leaf == INSTALL.leaf:
            device = INSTALL_BUCKET
        if self._buckets.take(device, self._clock()):
            return True
        if device != INSTALL_BUCKET:
            with self._lock:
                self._refused[device] += 1
        return False

    def take_refused(self) -> Counter[str]:
        """Messages that were refused since the last call, by device."""
        if not self._refused:
            return Counter()
        with self._lock:
            refused, self._refused = self._refused, Counter()
        return refused
