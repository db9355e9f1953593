"""How messages become bytes and back: JSON for what people read, msgpack for tensors."""

from __future__ import annotations

from typing import Any, Self

import msgpack
import msgspec

from splitee.errors import MalformedMessage

MAX_JSON = 1 << 20  # bytes; a run of 10,000 participants fits
MAX_PACKED = 256 << 20  # bytes of one message after its parts are joined
MAX_ITEMS = 65_536  # entries of an array or map in a packed message


class JsonMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A small message that people and dashboards can read."""

    def encode(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Raises MalformedMessage that names the field."""
        if len(payload) > MAX_JSON:
            raise MalformedMessage(f"{cls.__name__}: {len(payload)} bytes, at most {MAX_JSON} are read")
        try:
            return msgspec.json.decode(payload, type=cls)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise MalformedMessage(f"{cls.__name__}: {error}") from None


class PackedMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message that carries tensors, as a msgpack map."""

    def encode(self) -> bytes:
        packed: bytes = msgpack.packb(msgspec.to_builtins(self, builtin_types=(bytes, memoryview)))
        return packed

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Raises MalformedMessage that names the field."""
        try:
            return msgspec.convert(unpack(payload), type=cls)
        except (msgspec.ValidationError, RecursionError) as error:
            raise MalformedMessage(f"{cls.__name__}: {error}") from None
        except MalformedMessage as error:
            raise MalformedMessage(f"{cls.__name__}: {error}") from None


def unpack(payload: bytes) -> Any:
    """The msgpack value of `payload`, every length bounded, no extension types.

    Raises:
        MalformedMessage: it is too long, truncated, has trailing bytes, or is no msgpack.
    """
    if len(payload) > MAX_PACKED:
        raise MalformedMessage(f"{len(payload)} bytes, at most {MAX_PACKED} are read")
    try:
        return msgpack.unpackb(
            payload,
            strict_map_key=True,
            max_bin_len=len(payload),
            max_str_len=min(len(payload), MAX_JSON),
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
            max_ext_len=0,
        )
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise MalformedMessage(f"no valid msgpack ({error})") from None
