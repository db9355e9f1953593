# SPDX-License-Identifier: Apache-2.0
"""Messages over a TLS connection: bounded in length, with a deadline for all their bytes."""

from __future__ import annotations

import ssl
import time
from typing import TypeVar

import msgspec

from splitee.errors import MalformedMessage
from splitee.pairing.messages import Message, Refused

LENGTH = 4  # bytes of a message's length, big-endian
LARGEST = 64 * 1024  # bytes of a message: twice what the largest one may hold

T = TypeVar("T", bound=Message)

_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
_encoder = msgspec.msgpack.Encoder()


class Channel:
    """One connection. All its messages together may take `limit` seconds from now on."""

    def __init__(self, connection: ssl.SSLSocket, limit: float) -> None:
        self._connection = connection
        self.extend(limit)

    def extend(self, limit: float) -> None:
        """The rest of the conversation may take `limit` seconds from now on."""
        self._until = time.monotonic() + limit

    def send(self, message: Message) -> None:
        """Raises OSError: the other side is gone, or does not accept it in time."""
        data = _encoder.encode(message)
        self._connection.settimeout(self._left())
        self._connection.sendall(len(data).to_bytes(LENGTH, "big") + data)

    def receive(self, kind: type[T]) -> T:
        """The other side's next message, which is of this kind.

        Raises:
            OSError: the other side is gone, or silent for too long.
            MalformedMessage: what came is not a message, or one of another kind.
        """
        message = self._next()
        if not isinstance(message, kind):
            raise MalformedMessage(f"expected {kind.__name__}, got {type(message).__name__}")
        return message

    def receive_or_refusal(self, kind: type[T]) -> T | Refused:
        """Like `receive`, but the other side may also refuse."""
        message = self._next()
        if not isinstance(message, (kind, Refused)):
            raise MalformedMessage(f"expected {kind.__name__}, got {type(message).__name__}")
        return message

    def _next(self) -> Message:
        length = int.from_bytes(self._read(LENGTH), "big")
        if length > LARGEST:
            raise MalformedMessage(f"a message of {length} bytes; expected at most {LARGEST}")
        data = self._read(length)
        try:
            return _decoder.decode(data)
        except (msgspec.DecodeError, ValueError, RecursionError):
            raise MalformedMessage("what came is no message of the pairing") from None

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._connection.settimeout(self._left())
            piece = self._connection.recv(size - len(data))
            if not piece:
                raise ConnectionError("the connection was closed")
            data += piece
        return bytes(data)

    def _left(self) -> float:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("it took too long")
        return left
