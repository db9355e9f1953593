# SPDX-License-Identifier: Apache-2.0
"""Messages larger than the broker accepts: split into numbered parts, and joined within bounds."""

from __future__ import annotations

import itertools
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Annotated

import msgpack
import msgspec

from splitee.errors import MalformedMessage
from splitee.mqtt.port import Port
from splitee.protocol.encoding import MAX_PACKED, unpack

PART_OVERHEAD = 64  # bytes a part's header takes at most
MAX_PARTS = 1 << 14  # of one message; with 16 KiB each, they hold the largest message
MAX_OPEN = 4  # unfinished messages kept per sender
MAX_FINISHED = 4096  # messages that are remembered, so that a repeated part does not open one again
message_numbers = itertools.count(1)  # for `split`: no two messages of a process share one
_FIRST = secrets.randbits(61)  # so that no two processes of a sender use the same message numbers


class Part(msgspec.Struct, frozen=True, array_like=True):
    """One numbered piece of a message; on the wire it is an array, while a message is a map.

    Attributes:
        message: number of the message; its sender uses it for no other message.
        index: number of the part, from 0.
        count: number of parts.
        size: bytes of the whole message.
        data: bytes of this part.
    """

    message: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
    index: Annotated[int, msgspec.Meta(ge=0, lt=MAX_PARTS)]
    count: Annotated[int, msgspec.Meta(ge=2, le=MAX_PARTS)]
    size: Annotated[int, msgspec.Meta(ge=2, le=MAX_PACKED)]
    data: Annotated[bytes, msgspec.Meta(min_length=1)]


def split(payload: bytes, limit: int, message: int) -> Iterator[bytes]:
    """`payload` itself if it fits into `limit` bytes, else its parts, each of at most `limit` bytes.

    Args:
        message: a number below 2^61 that no other message of this process has.

    Raises:
        ValueError: the payload is too large, or the limit too small for it.
    """
    if len(payload) <= limit:
        yield payload
        return
    if len(payload) > MAX_PACKED:
        raise ValueError(f"a message of {len(payload)} bytes: at most {MAX_PACKED} are taken")
    room = limit - PART_OVERHEAD
    if room < 1 or len(payload) > room * MAX_PARTS:
        raise ValueError(f"a limit of {limit} bytes: {len(payload)} bytes would need over {MAX_PARTS} parts")
    view = memoryview(payload)
    count = -(-len(payload) // room)
    for index in range(count):
        chunk = view[index * room : (index + 1) * room]
        part: bytes = msgpack.packb((_FIRST + message, index, count, len(payload), chunk))
        yield part


def publish_in_parts(
    port: Port,
    topic: str,
    payload: bytes,
    *,
    correlation: bytes | None = None,
    most: int = MAX_PACKED,
    meanwhile: Callable[[], object] = lambda: None,
) -> bool:
    """Publish `payload`, in parts if it would occupy the link for too long; False: not connected.

    `most`: bytes of the largest part, in case the reader's link is slower than this one.
    `meanwhile` is called before each part: on a slow link all parts together may take minutes.
    """
    for part in split(payload, min(most, port.part_size), next(message_numbers)):
        meanwhile()
        if not port.publish(topic, part, correlation=correlation):
            return False
    return True


class _Incomplete:
    """A message whose parts are still arriving: its memory grows only with the data that has arrived."""

    def __init__(self, part: Part) -> None:
        self.count = part.count
        self.size = part.size
        self.pieces: dict[int, bytes] = {}
        self.received = 0

    def add(self, part: Part) -> bytes | None:
        if (part.count, part.size) != (self.count, self.size) or part.index >= self.count:
            raise MalformedMessage(f"Part {part.index} of {part.count}, {part.size} B, is not of its message")
        if part.index not in self.pieces:
            self.received += len(part.data)
            if self.received > self.size:
                raise MalformedMessage(f"Part: more data than the {self.size} B that were announced")
            self.pieces[part.index] = part.data
        if len(self.pieces) < self.count:
            return None
        if self.received != self.size:
            raise MalformedMessage(f"Part: {self.received} B came of {self.size} B that were announced")
        return b"".join(self.pieces[index] for index in range(self.count))


class Assembler:
    """Joins the parts of many senders; the bytes of each sender, and of all together, are bounded."""

    def __init__(self, limit: int = MAX_PACKED, total: int = 4 * MAX_PACKED) -> None:
        """`limit`, `total`: largest number of bytes in unfinished messages, of one sender and of all."""
        self._limit = limit
        self._total = total
        self._open: dict[str, dict[int, _Incomplete]] = {}  # by sender and message, the oldest first
        self._held: Counter[str] = Counter()  # bytes, by sender
        self._held_by_all = 0
        self._finished: dict[tuple[str, int], None] = {}

    def add(self, sender: str, payload: bytes, limit: int | None = None) -> bytes | None:
        """The whole message if `payload` completes one or is one by itself; else None.

        Args:
            limit: bytes of the largest message, if fewer than the limit of a sender.

        Raises:
            MalformedMessage: the part is broken, or does not fit the others of its message.
        """
        if not payload or payload[0] & 0xF0 != 0x90:  # not a msgpack array of under 16 entries
            return payload
        part = unpack(payload, Part)
        most = self._limit if limit is None else min(limit, self._limit)
        if part.size > most:
            raise MalformedMessage(
                f"Part: of a message of {part.size} B, at most {most} B are taken", "oversized"
            )
        if (sender, part.message) in self._finished:
            return None
        entry = self._open.setdefault(sender, {}).setdefault(part.message, _Incomplete(part))
        before = entry.received
        try:
            whole = entry.add(part)
        except MalformedMessage:
            self._count(sender, entry.received - before)
            self._drop(sender, part.message)
            raise
        self._count(sender, entry.received - before)
        if whole is not None:
            self._drop(sender, part.message)
            self._finish((sender, part.message))
        else:
            self._evict(sender)
        return whole

    def forget(self, sender: str) -> None:
        """Drop the incomplete messages of a sender that has restarted."""
        for message in tuple(self._open.get(sender, ())):
            self._drop(sender, message)

    def _count(self, sender: str, size: int) -> None:
        self._held[sender] += size
        self._held_by_all += size

    def _drop(self, sender: str, message: int) -> None:
        self._count(sender, -self._open[sender].pop(message).received)
        if not self._open[sender]:
            del self._open[sender], self._held[sender]

    def _drop_oldest(self, sender: str) -> None:
        self._drop(sender, next(iter(self._open[sender])))

    def _finish(self, key: tuple[str, int]) -> None:
        self._finished[key] = None
        if len(self._finished) > MAX_FINISHED:
            del self._finished[next(iter(self._finished))]

    def _evict(self, sender: str) -> None:
        """Drop the oldest messages of `sender` while it exceeds its limits, then of whoever holds most."""
        while len(self._open.get(sender, ())) > MAX_OPEN or self._held[sender] > self._limit:
            self._drop_oldest(sender)
        while self._held_by_all > self._total:
            self._drop_oldest(max(self._held, key=lambda one: self._held[one]))
