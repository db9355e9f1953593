"""What devices send, by purpose, as far as a report tells purposes apart."""

from __future__ import annotations

from dataclasses import dataclass

from splitee_lab.report.demo_report import DeviceResult

COUNTED = "features with their labels, and weights"


@dataclass(frozen=True)
class Traffic:
    """Bytes that a device has sent for one purpose."""

    purpose: str
    bytes: int


def sent(device: DeviceResult) -> list[Traffic]:
    """What a device has sent, the purposes in the order in which they are shown."""
    return [Traffic("sent", device.bytes)]


def total(device: DeviceResult) -> int:
    """Bytes that a device has sent, for all purposes."""
    return sum(part.bytes for part in sent(device))
