# SPDX-License-Identifier: Apache-2.0
"""Bytes by purpose: the model of traffic that device, server and lab share."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, get_args

import msgspec
from msgspec.structs import asdict

from splitee.protocol.fields import LARGEST_COUNT, Count, Purpose

Direction = Literal["up", "down"]  # from a device; to one
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)
HEADERS = "headers"


class ByPurpose(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Bytes in one direction by purpose: of payloads, and in `headers` what MQTT adds to them.

    Attributes:
        training: features and labels that the trunk is trained on.
        evaluation: features and labels of held-out images, with the exit's predictions.
        statistics: features and labels for BatchNorm's statistics; from the device also the statistics.
        client_networks: weights of client networks and exits.
        soft_labels: the trunk's predictions from which exits learn.
        models: released models.
        offload: requests for the trunk's predictions, and the responses.
        protocol: all else: status, profile, acknowledgements, rounds, commits.
        headers: bytes of the messages beside their payloads: MQTT's fixed header, topic and properties.
    """

    training: Count = 0
    evaluation: Count = 0
    statistics: Count = 0
    client_networks: Count = 0
    soft_labels: Count = 0
    models: Count = 0
    offload: Count = 0
    protocol: Count = 0
    headers: Count = 0

    @property
    def payload(self) -> int:
        """Bytes of all payloads."""
        return sum(getattr(self, purpose) for purpose in PURPOSES)

    def __add__(self, other: ByPurpose) -> ByPurpose:
        own, others = asdict(self), asdict(other)
        return ByPurpose(**{name: own[name] + others[name] for name in own})


class Traffic(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Bytes that one or several devices have sent and received.

    Attributes:
        up: bytes from the device.
        down: bytes to it.
    """

    up: ByPurpose = ByPurpose()
    down: ByPurpose = ByPurpose()

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(up=self.up + other.up, down=self.down + other.down)

    @property
    def payload(self) -> int:
        """Bytes of all payloads, both ways."""
        return self.up.payload + self.down.payload

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """All figures, including those that are 0."""
        return {"up": asdict(self.up), "down": asdict(self.down)}


def total(moved: Sequence[Traffic]) -> Traffic:
    """The sum, in one pass over possibly thousands; no figure exceeds LARGEST_COUNT."""
    up, down = (
        ByPurpose(
            **{
                name: min(sum(getattr(each, name) for each in counts), LARGEST_COUNT)
                for name in ByPurpose.__struct_fields__
            }
        )
        for counts in ([each.up for each in moved], [each.down for each in moved])
    )
    return Traffic(up=up, down=down)


class Tally:
    """Counts bytes; may be used from any thread."""

    def __init__(self, earlier: Traffic | None = None) -> None:
        """`earlier`: traffic to begin with."""
        self._lock = threading.Lock()
        self._counts: Counter[tuple[Direction, str]] = Counter()
        if earlier is not None:
            for direction in DIRECTIONS:
                for name, count in asdict(getattr(earlier, direction)).items():
                    self._counts[direction, name] = count

    def add(self, direction: Direction, purpose: Purpose, payload: int, headers: int = 0) -> None:
        """A message, or several, of so many bytes."""
        with self._lock:
            self._counts[direction, purpose] += payload
            self._counts[direction, HEADERS] += headers

    def traffic(self) -> Traffic:
        """The traffic so far."""
        with self._lock:
            counts = dict(self._counts)
        up, down = (
            ByPurpose(**{name: count for (way, name), count in counts.items() if way == direction})
            for direction in DIRECTIONS
        )
        return Traffic(up=up, down=down)
