# SPDX-License-Identifier: Apache-2.0
"""Nearly valid messages: valid ones with replaced fields, changed bytes, or unusual MQTT properties."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import msgspec
import numpy as np

from splitee.protocol.encoding import JsonMessage, PackedMessage
from splitee.protocol.routes import Route
from splitee.protocol.topics import Topics

Samples = Mapping[Route, JsonMessage | PackedMessage]

NUMBERS = (0, 1, -1, 2, 255, 1 << 31, (1 << 62) - 1, 1 << 62, 1 << 63, 0.5, -0.0, 1e308, 3.4e38, -3.4e38)
TEXTS = (
    "",
    "\0",
    "\x1b[31mred\x1b[0m\nforged line",
    "../../etc/passwd",
    "\u202e",
    "x" * 2000,
    "run",
    "+",
    "#",
)
OTHERS: tuple[Any, ...] = (None, True, [], {}, [[]] * 50, b"", b"\x00" * 100)
FLOATS = (float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 65_505.0, 1e-45, 0.0)


@dataclass(frozen=True)
class Publication:
    """A payload and its MQTT properties."""

    payload: bytes
    retain: bool = False
    response_topic: str | None = None
    correlation: bytes | None = None


class Mutations:
    """Draws nearly valid messages at random, from a seed."""

    def __init__(
        self, topics: Topics, device: str, samples: Mapping[Route, JsonMessage | PackedMessage], seed: int
    ):
        """`samples`: a valid message of `device` for each route."""
        self._topics = topics
        self._device = device
        self._samples = samples
        self._random = random.Random(seed)
        self._ways: tuple[Callable[[Route], bytes], ...] = (
            self._fields,
            self._fields,
            self._fields,
            self._bytes,
        )

    def draw(self) -> tuple[Route, Publication]:
        """The next message, and the route that it is published on."""
        route = self._random.choice(tuple(self._samples))
        payload = self._random.choice(self._ways)(route)
        draw = self._random.random
        inbox = self._random.choice(("answer", "answer", "+", "#", "plan", "a" * 300))
        return route, Publication(
            payload,
            retain=draw() < 0.02,
            response_topic=self._topics.device(self._device, f"inbox/{inbox}") if draw() < 0.5 else None,
            correlation=self._random.randbytes(self._random.choice((0, 8, 16, 64, 65, 200)))
            if draw() < 0.5
            else None,
        )

    def _fields(self, route: Route) -> bytes:
        """A message with one to three fields replaced or removed."""
        message = self._samples[route]
        fields = copy.deepcopy(msgspec.to_builtins(message, builtin_types=(bytes,)))
        for _ in range(self._random.randint(1, 3)):
            self._replace(fields)
        if isinstance(message, PackedMessage):
            packed: bytes = msgpack.packb(fields)
            return packed
        return msgspec.json.encode(fields)

    def _replace(self, fields: dict[str, Any]) -> None:
        if not fields:  # all are removed
            return
        name = self._random.choice(tuple(fields))
        value = fields[name]
        if isinstance(value, dict) and value and self._random.random() < 0.8:
            self._replace(value)
        elif name == "data" and isinstance(value, bytes) and self._random.random() < 0.7:
            fields[name] = self._values(value)
        elif self._random.random() < 0.1:
            del fields[name]
        else:
            fields[name] = self._value(value)

    def _value(self, value: Any) -> Any:
        pools: tuple[tuple[Any, ...], ...] = (NUMBERS, TEXTS, OTHERS)
        if isinstance(value, int | float):
            pools = (NUMBERS, NUMBERS, OTHERS)
        elif isinstance(value, str):
            pools = (TEXTS, TEXTS, OTHERS)
        elif isinstance(value, list):
            return self._random.choice(
                (value[:-1], value * 2, [1, *value[1:]], [self._random.choice(NUMBERS)] * 3)
            )
        elif isinstance(value, bytes):
            cut = self._random.randrange(len(value) + 1)
            return self._random.choice((value[:cut], value * 2, self._random.randbytes(min(cut, 1000))))
        return self._random.choice(self._random.choice(pools))

    def _values(self, data: bytes) -> bytes:
        """A tensor's bytes with one, two or all of its float32 values replaced by one of FLOATS."""
        values = np.frombuffer(data[: len(data) // 4 * 4], "<f4").copy()
        if len(values):
            count = self._random.choice((1, 2, max(1, len(values))))
            indices = np.linspace(0, len(values) - 1, count).astype(int)
            values[indices] = self._random.choice(FLOATS)
        return values.tobytes() + data[len(data) // 4 * 4 :]

    def _bytes(self, route: Route) -> bytes:
        """An encoded message with bytes replaced or inserted at one to four positions."""
        data = bytearray(self._samples[route].encode())
        for _ in range(self._random.randint(1, 4)):
            start, length = self._random.randrange(len(data) + 1), self._random.randrange(8)
            data[start : start + self._random.choice((0, length))] = self._random.randbytes(length)
        return bytes(data)
