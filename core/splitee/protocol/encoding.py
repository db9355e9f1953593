# SPDX-License-Identifier: Apache-2.0
"""Encoding of messages: JSON for those that people read, msgpack for those with tensors."""

from __future__ import annotations

from typing import Self, TypeVar

import msgpack
import msgspec

from splitee.errors import MalformedMessage

MAX_JSON = 1 << 20  # bytes; a run of 10,000 participants fits
MAX_PACKED = 256 << 20  # bytes of one message after its parts are joined
MAX_ITEMS = 65_536  # entries of a map in a packed message

Struct = TypeVar("Struct", bound=msgspec.Struct)


class JsonMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A small message that people and dashboards can read."""

    def encode(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Raises MalformedMessage that names the field."""
        if len(payload) > MAX_JSON:
            raise MalformedMessage(
                f"{cls.__name__}: {len(payload)} bytes, at most {MAX_JSON} are read", "oversized"
            )
        try:
            return msgspec.json.decode(payload, type=cls)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise MalformedMessage(f"{cls.__name__}: {error}") from None


class PackedMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message that carries tensors, as a msgpack map."""

    def encode(self) -> bytes:
        packed: bytes = msgpack.packb(msgspec.to_builtins(self, builtin_types=(bytes,)))
        return packed

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Raises MalformedMessage that names the field."""
        return unpack(payload, cls)


def unpack(payload: bytes, kind: type[Struct]) -> Struct:
    """The `kind` that msgpack `payload` holds.

    Each field is checked while it is read: a length is compared with its bound, and with the bytes
    that are left, before anything is allocated for it. msgpack's own decoder is not used,
    because it builds the whole value first, and needs 82 MB for 3 KB of nested arrays.

    Raises:
        MalformedMessage: it is too long, truncated, has trailing bytes, is no msgpack or no `kind`.
    """
    if len(payload) > MAX_PACKED:
        raise MalformedMessage(
            f"{kind.__name__}: {len(payload)} bytes, at most {MAX_PACKED} are read", "oversized"
        )
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise MalformedMessage(f"{kind.__name__}: {error}") from None
