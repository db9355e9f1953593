"""Messages larger than the broker takes: cut into numbered parts, and put together under bounds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Annotated

import msgpack
import msgspec

from splitee.errors import MalformedMessage
from splitee.wire import MAX_PACKED, unpack

PART_OVERHEAD = 64  # bytes a part's header takes at most
MAX_OPEN = 4  # unfinished messages kept per sender


class Part(msgspec.Struct, frozen=True, array_like=True):
    """One numbered piece; an array on the wire, so it never looks like a message, which is a map."""

    message: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
    index: Annotated[int, msgspec.Meta(ge=0, lt=1 << 20)]
    count: Annotated[int, msgspec.Meta(ge=2, le=1 << 20)]
    size: Annotated[int, msgspec.Meta(ge=2, le=MAX_PACKED)]
    data: Annotated[bytes, msgspec.Meta(min_length=1)]


def split(payload: bytes, limit: int, message: int) -> Iterator[bytes]:
    """`payload` itself when it fits `limit` bytes, else its parts, each at most `limit` bytes.

    Args:
        message: a number no other unfinished message of this sender has.
    """
    if len(payload) <= limit:
        yield payload
        return
    room = limit - PART_OVERHEAD
    if room < 1:
        raise ValueError(f"a limit of {limit} bytes leaves no room for a part")
    view = memoryview(payload)
    count = -(-len(payload) // room)
    for index in range(count):
        chunk = view[index * room : (index + 1) * room]
        yield msgpack.packb((message, index, count, len(payload), chunk))


class _Open:
    """A message whose parts are still arriving: the arrays grow only with what has arrived."""

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
    """Joins the parts of many senders; a sender holds at most MAX_OPEN messages and `limit` bytes."""

    def __init__(self, limit: int = MAX_PACKED) -> None:
        self._limit = limit
        self._open: dict[str, OrderedDict[int, _Open]] = {}

    def add(self, sender: str, payload: bytes) -> bytes | None:
        """The whole message when `payload` completes one, or is one by itself; else None.

        Raises:
            MalformedMessage: the part is broken, or does not fit the others of its message.
        """
        if not payload or payload[0] & 0xF0 != 0x90:  # not a msgpack array of under 16 entries
            return payload
        try:
            part = msgspec.convert(unpack(payload), type=Part)
        except msgspec.ValidationError as error:
            raise MalformedMessage(f"Part: {error}") from None
        if part.size > self._limit:
            raise MalformedMessage(f"Part: of a message of {part.size} B, at most {self._limit} B are taken")
        messages = self._open.setdefault(sender, OrderedDict())
        entry = messages.get(part.message)
        if entry is None:
            entry = messages[part.message] = _Open(part)
        try:
            whole = entry.add(part)
        except MalformedMessage:
            self._drop(sender, part.message)
            raise
        if whole is not None:
            self._drop(sender, part.message)
        else:
            self._evict(messages)
        return whole

    def forget(self, sender: str) -> None:
        """Drop what is unfinished, when a sender starts anew."""
        self._open.pop(sender, None)

    def _drop(self, sender: str, message: int) -> None:
        messages = self._open[sender]
        del messages[message]
        if not messages:
            del self._open[sender]

    def _evict(self, messages: OrderedDict[int, _Open]) -> None:
        while len(messages) > MAX_OPEN or sum(m.received for m in messages.values()) > self._limit:
            messages.popitem(last=False)
