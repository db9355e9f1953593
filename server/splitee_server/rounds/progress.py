# SPDX-License-Identifier: Apache-2.0
"""A snapshot of a run's progress, taken by the training thread and read by viewers."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from splitee.protocol.fleet import DeviceStatus, Metrics
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.traffic import Traffic
from splitee_server.members.members import Member


class Trained(msgspec.Struct):
    """What this process has trained so far, and the time of the training alone."""

    batches: int = 0
    samples: int = 0
    seconds: float = 0.0

    def add(self, samples: int, seconds: float) -> None:
        self.batches += 1
        self.samples += samples
        self.seconds += seconds


class DeviceSnapshot(msgspec.Struct, frozen=True):
    """One device of the run.

    `batches`: of committed rounds. `traffic`: what it has sent, and was sent, so far.
    """

    device: str
    cut: int
    online: bool
    batches: int
    traffic: Traffic = Traffic()


def device_snapshot(member: Member, traffic: Traffic) -> DeviceSnapshot:
    return DeviceSnapshot(member.device, member.cut, member.online, member.totals.batches, traffic)


class RunProgress(msgspec.Struct, frozen=True):
    """Progress as the coordinator knows it."""

    spec: RunSpec
    phase: str
    committed: int  # rounds
    devices: tuple[DeviceSnapshot, ...]
    waiting_for: tuple[str, ...]
    missing: int  # devices that are waited for, including those that are not known yet
    waited: float  # seconds without a batch while devices are missing
    queued: int  # batches that have arrived and are not trained
    duplicates: int
    trained: Trained
    metrics: Metrics | None  # of the last evaluated round
    estimate: float | None = None  # seconds since the epoch at which the run probably ends


class Progress(msgspec.Struct, frozen=True):
    """Progress as the server knows it."""

    fleet: str
    run: RunProgress
    statuses: Mapping[str, DeviceStatus]
    rejected: Mapping[tuple[str, str], int]  # messages, by sender and reason
    quarantined: tuple[str, ...]
    received: int  # bytes of payloads
    sent: int  # bytes of payloads
    connected: bool
