# SPDX-License-Identifier: Apache-2.0
"""What devices send, by purpose, as the page shows it; report.json has every purpose, and both directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from splitee.protocol.traffic import PURPOSES
from splitee_lab.report.demo_report import DeviceResult

COUNTED = "payloads that devices send; report.json has each purpose, what they receive, and MQTT headers"
MOST_DEVICES = 6  # for up to so many, each purpose has a bar of its own


@dataclass(frozen=True)
class Sent:
    """Bytes that a device has sent for one purpose, or for all."""

    purpose: str
    bytes: int


def sent(device: DeviceResult) -> list[Sent]:
    """What a device has sent, by purpose; purposes without bytes are left out."""
    up = device.traffic.up
    parts = [Sent(purpose.replace("_", " "), getattr(up, purpose)) for purpose in PURPOSES]
    return [part for part in parts if part.bytes] or [Sent("sent", device.bytes)]


def total(device: DeviceResult) -> int:
    """Bytes that a device has sent, for all purposes."""
    return sum(part.bytes for part in sent(device))


def bars_of(devices: Sequence[DeviceResult], device: DeviceResult) -> list[Sent]:
    """The bars of one of `devices`: its purposes, or their sum if there are many devices."""
    return sent(device) if len(devices) <= MOST_DEVICES else [Sent("sent", total(device))]
