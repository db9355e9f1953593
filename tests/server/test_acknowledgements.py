# SPDX-License-Identifier: Apache-2.0
"""Acknowledgements of batches: early enough that no device waits for one, and no more often."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace
from virtual_fleet import TOPICS, VirtualFleet

from splitee.protocol import routes
from splitee.protocol.rounds import Ack

THREE = ("pi-1", "pi-2", "pi-3")
STEPS, WINDOW = 16, 8


def served(path: Path, *, ahead: bool) -> tuple[str, list[int]]:
    """The run's weights, and the steps of the acknowledgements that pi-1 got in its first round.

    `ahead`: devices send as many batches as their windows allow; else one when the last one is trained.
    """
    fleet = VirtualFleet(path, *THREE, window=WINDOW)
    for device in fleet.devices.values():
        device.is_ahead = ahead
        device.profile = replace(device.profile, train_samples=STEPS * fleet.spec.batch_size)
    report = fleet.run()
    acks = map(Ack.decode, fleet.port.payloads(routes.ACK.topic(TOPICS, "pi-1")))
    return report["weights_sha256"], [ack.step for ack in acks if (ack.round, ack.phase) == (1, "train")]


def test_device_that_waits_for_each_batch_gets_an_ack_for_each(tmp_path: Path) -> None:
    _, acknowledged = served(tmp_path, ahead=False)
    assert acknowledged == list(range(1, STEPS + 1))


def test_device_that_sends_ahead_gets_an_ack_every_half_window(tmp_path: Path) -> None:
    weights, acknowledged = served(tmp_path / "ahead", ahead=True)
    assert acknowledged == [WINDOW // 2, WINDOW, WINDOW + WINDOW // 2, STEPS]
    assert weights == served(tmp_path / "behind", ahead=False)[0]
