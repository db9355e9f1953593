# SPDX-License-Identifier: Apache-2.0
"""The window of publications that the broker has not acknowledged yet."""

from __future__ import annotations

import threading

IN_FLIGHT = 20  # paho sends all of them again, at once, when it reconnects


class InFlight:
    """The publications that the broker has not acknowledged: a bounded number, each with its topic.

    Its lock is never held while paho is called: paho calls back under locks of its own.
    """

    def __init__(self) -> None:
        self._window = IN_FLIGHT
        self.acknowledged = 0
        self._topics: dict[int, str] = {}
        self._early: set[int] = set()  # acknowledged before `sent` was told their number
        self._sending = ""
        self._up = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._topics)

    @property
    def window(self) -> int:
        return self._window

    @property
    def up(self) -> bool:
        return self._up

    def start(self, window: int) -> None:
        with self._changed:
            self._up = True
            self._window = window
            self._changed.notify_all()

    def narrow(self, window: int) -> None:
        """From now on no more than so many."""
        with self._changed:
            self._window = min(self._window, window)

    def stop(self) -> None:
        with self._changed:
            self._up = False
            self._changed.notify_all()

    def wait_while_up(self, seconds: float) -> None:
        """Wait so long, or until the link is down."""
        if seconds > 0:
            with self._changed:
                self._changed.wait_for(lambda: not self._up, seconds)

    def wait_for_room(self, topic: str) -> bool:
        """True when one more may be sent; False as soon as the link is down."""
        with self._changed:
            self._changed.wait_for(lambda: not self._up or len(self._topics) < self._window)
            self._sending = topic
            return self._up

    def sent(self, number: int, topic: str) -> None:
        with self._changed:
            if number in self._early:
                self._early.discard(number)
            else:
                self._topics[number] = topic

    def acknowledge(self, number: int) -> str:
        """Returns the topic of what was acknowledged."""
        with self._changed:
            topic = self._topics.pop(number, None)
            if topic is None:
                self._early.add(number)
                topic = self._sending
            self.acknowledged += 1
            self._changed.notify_all()
            return topic

    def clear(self) -> None:
        with self._changed:
            self._topics.clear()
            self._early.clear()
            self._changed.notify_all()

    def wait_until_empty(self, timeout: float | None) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._topics, timeout)
