# SPDX-License-Identifier: Apache-2.0
"""The gate at both ends of the link: every received message is checked and applied here.

A message that is rejected, for whatever reason, changes nothing and ends nothing. It is counted by its
sender and the reason, the first few of a sender are logged, and the gate's owner is notified.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from splitee.errors import MalformedMessage, SpliteeError, Unwinding
from splitee.mqtt.events import Message
from splitee.protocol.parts import Assembler
from splitee.protocol.routes import Route, find_route
from splitee.protocol.topics import Topics

EVENTS_AT_ONCE = 256  # that are handled between two batches at most, so that a flood cannot stop training
LOGGED = 10  # rejected messages of one sender that are logged; all are counted
SENDERS = 100_000  # whose rejected messages are counted separately
OTHERS = "others"
ANY_DEVICE = "+"  # device, in a subscription

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Received:
    """A message that has been decoded and checked. `message` is None if a topic was cleared."""

    route: Route
    device: str  # of the topic; "" if it is no device's topic
    message: Any
    envelope: Message

    @property
    def sender(self) -> str:
        return self.device if self.route.sender == "device" else "server"


@dataclass(frozen=True)
class Rejection:
    """A rejected message. `is_logged`: it is one of the first of its sender.

    `envelope`: None for a message that was read earlier, such as a batch that has waited for its turn.
    """

    route: Route
    device: str
    envelope: Message | None
    error: MalformedMessage
    is_logged: bool


class Gate:
    """Reads the messages of some routes, and applies them."""

    def __init__(
        self,
        topics: Topics,
        routes: Collection[Route],
        *,
        device: str = ANY_DEVICE,
        admit: Callable[[Route, str], None] = lambda _route, _device: None,
        on_rejected: Callable[[Rejection], None] = lambda _rejection: None,
        on_part: Callable[[Route, str], None] = lambda _route, _device: None,
        accepts_cleared: bool = False,
        passes: tuple[type[Exception], ...] = (SpliteeError, Unwinding),
        log_first: int = LOGGED,
    ) -> None:
        """Messages on other routes are ignored.

        Args:
            device: whose topics are read; default: every device's.
            admit: raises MalformedMessage for a device whose messages must not even be kept.
            on_rejected: called for each rejected message.
            on_part: called for each part of a message that is still incomplete.
            takes_cleared: an empty payload clears a retained topic; else it is malformed.
            passes: exceptions of an action that reach the caller. All others reject the message.
            log_first: rejected messages of each sender that are logged; all are counted.
        """
        self._topics = topics
        self._routes = frozenset(routes)
        self._device = device
        self._admit = admit
        self._on_rejected = on_rejected
        self._on_part = on_part
        self._accepts_cleared = accepts_cleared
        self._passes = passes
        self._log_first = log_first
        self._parts = Assembler()
        self._by_sender: Counter[str] = Counter()
        self.rejected: Counter[tuple[str, str]] = Counter()  # by sender and reason

    @property
    def filters(self) -> tuple[str, ...]:
        """What to subscribe to."""
        return tuple(sorted(route.topic(self._topics, self._device) for route in self._routes))

    def read(self, envelope: Message) -> Received | None:
        """The message, once all its parts have arrived; None: it is incomplete or rejected."""
        found = find_route(self._topics, envelope.topic)
        if found is None or found[0] not in self._routes:
            return None
        route, device = found
        if self._device not in (ANY_DEVICE, device) and route.of_device:
            return None
        try:
            self._admit(route, device)
            if envelope.retained and not route.retained:
                raise MalformedMessage(
                    "retained at the broker, which must keep nothing of this topic", "retained"
                )
            if not envelope.payload and route.retained and self._accepts_cleared:
                return Received(route, device, None, envelope)
            payload: bytes | None = envelope.payload
            if route.parts:
                payload = self._parts.add(_key(route, device), envelope.payload, route.limit)
            if payload is None:
                self._on_part(route, device)
                return None
            return Received(route, device, route.message.decode(payload), envelope)
        except MalformedMessage as error:
            self.reject(route, device, envelope, error)
        except Exception as error:
            self.reject(route, device, envelope, _unhandled(error))
        return None

    def apply(self, received: Received, action: Callable[[Received], object]) -> bool:
        """Carry out a message; False: it is rejected after all.

        `action` checks all of a message before it changes anything.
        """
        return self.guard(received.route, received.device, lambda: action(received), received.envelope)

    def guard(
        self, route: Route, device: str, action: Callable[[], object], envelope: Message | None = None
    ) -> bool:
        """Run `action` on a device's message; False: it raised an error, and the message is rejected.

        Raises:
            Exception: one of those that pass.
        """
        try:
            action()
        except MalformedMessage as error:
            self.reject(route, device, envelope, error)
        except self._passes:
            raise
        except Exception as error:
            log.debug("what a message has raised", exc_info=True)
            self.reject(route, device, envelope, _unhandled(error))
        else:
            return True
        return False

    def reject(self, route: Route, device: str, envelope: Message | None, error: MalformedMessage) -> None:
        """Count a rejected message, and report it."""
        sender = device if route.sender == "device" else "server"
        if sender not in self._by_sender and len(self._by_sender) >= SENDERS:
            sender = OTHERS
        self.rejected[sender, error.reason] += 1
        self._by_sender[sender] += 1
        count = self._by_sender[sender]
        is_logged = count <= self._log_first
        if is_logged:
            last = "; further ones are only counted" if count == self._log_first else ""
            log.warning("%s rejected: %s%s", route.topic(self._topics, device), error, last)
        self._on_rejected(Rejection(route, device, envelope, error, is_logged))

    def forget_parts(self, device: str) -> None:
        """Drop the incomplete messages of `device`, whose process has restarted."""
        for route in self._routes:
            self._parts.forget(_key(route, device))


def _unhandled(error: Exception) -> MalformedMessage:
    reason = str(error).partition("\n")[0][:200]
    return MalformedMessage(f"it raises {type(error).__name__} ({reason})", "unhandled")


def _key(route: Route, device: str) -> str:
    return f"{device}/{route.leaf}"
