# SPDX-License-Identifier: Apache-2.0
"""A few trunks in memory at a time give the same weights: the service with a fake port and clock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from virtual_fleet import TOPICS, VirtualFleet

from splitee.cli.signals import Stopped
from splitee.protocol import routes
from splitee.protocol.fleet import DeviceStatus
from splitee.protocol.rounds import Ack
from splitee_server.learning.lanes import in_order
from splitee_server.rounds.policy import Policy

FIVE = ("pi-1", "pi-2", "pi-3", "pi-4", "pi-5")
SETTINGS: list[dict[str, Any]] = [
    {"client_averaging": "none", "weighting": "uniform"},
    {"client_averaging": "same-cut", "optimizer": "adamw", "soft_labels": 1.0},
    {"server_momentum": 0.5, "statistics_batches": 2, "balanced_loss": True},
    {"largest_loss": 1.01, "clip_gradient": 0.5},
]


def averaging(path: Path, resident: int, *, instance: int = 100, **settings: Any) -> VirtualFleet:
    policy = Policy(devices=len(FIVE), quorum=1, missing="skip", floor=60.0, resident=resident)
    return VirtualFleet(
        path,
        *FIVE,
        policy=policy,
        instance=instance,
        strategy="averaging",
        trunk_momentum="dropped",
        **{"rounds": 3, **settings},
    )


def trained(fleet: VirtualFleet) -> list[str]:
    """The devices of round 1 in the order in which their batches are acknowledged."""
    found = []
    for sent in fleet.port.sent:
        for device in FIVE:
            if sent.topic == routes.ACK.topic(TOPICS, device):
                ack = Ack.decode(sent.payload)
                if (ack.round, ack.phase) == (1, "train") and ack.step and not ack.resend:
                    found.append(device)
    return found


@pytest.mark.parametrize("settings", SETTINGS)
def test_weights_do_not_depend_on_the_number_of_trunks_in_memory(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    digests = set()
    for resident in (0, 1, 2):
        fleet = averaging(tmp_path / f"{resident}", resident, **settings)
        digests.add(fleet.run()["weights_sha256"])
    assert len(digests) == 1


def test_devices_are_served_in_order_within_the_limit_of_trunks_in_memory(tmp_path: Path) -> None:
    for resident in (1, 2):
        fleet = averaging(tmp_path / f"{resident}", resident, rounds=1)
        fleet.run()
        served = trained(fleet)
        order = in_order(FIVE)
        for device in FIVE:
            last = len(served) - served[::-1].index(device)
            begun = {other for other in served[:last] if order.index(other) >= order.index(device)}
            assert len(begun) <= resident
        if resident == 1:
            assert list(dict.fromkeys(served)) == order


@pytest.mark.parametrize(("device", "step"), [(0, 1), (2, 0), (4, 2)])
def test_server_killed_within_a_wave_ends_with_the_same_weights(
    tmp_path: Path, device: int, step: int
) -> None:
    expected = averaging(tmp_path / "whole", 0).run()["weights_sha256"]
    killed = averaging(tmp_path / "server", 2)

    def stop(number: int, phase: str, batch: int) -> None:
        if (number, phase, batch) == (2, "train", step):
            killed.stopped = True

    killed.devices[in_order(FIVE)[device]].before_batch = stop
    with pytest.raises(Stopped):
        killed.run()
    assert sorted(killed.commits) == [1]
    again = averaging(tmp_path / "server", 2, instance=101)
    assert again.run()["weights_sha256"] == expected


@pytest.mark.parametrize("place", [0, 2, 4])
def test_vanished_device_is_excluded_for_any_number_of_trunks_in_memory(tmp_path: Path, place: int) -> None:
    commits = []
    gone = in_order(FIVE)[place]
    for resident in (0, 1, 2):
        fleet = averaging(tmp_path / f"{resident}", resident, client_averaging="none")
        device = fleet.devices[gone]

        def vanish(number: int, phase: str, step: int, device: Any = device) -> None:
            if (number, phase, step) == (2, "train", 1):
                device.pause()
                device.publish(routes.STATUS, DeviceStatus(state="offline", instance=1).encode())

        device.before_batch = vanish
        fleet.run()
        commits.append([fleet.commits[number].weights_sha256 for number in (1, 2, 3)])
        assert fleet.counted[2] == sorted(set(FIVE) - {gone})
    assert commits[0] == commits[1] == commits[2]


def test_device_of_a_later_wave_is_not_late(tmp_path: Path) -> None:
    """Each takes most of the deadline's 60 s in its own turn; the others wait for theirs meanwhile."""
    fleet = averaging(tmp_path / "server", 1)
    for device in fleet.devices.values():

        def rest(number: int, phase: str, step: int, device: Any = device) -> None:
            if (number, phase, step) == (2, "train", 1) and device.port.clock() > device.rested:
                device.rested = float("inf")
                device.pause(50.0)

        device.rested = 0.0  # type: ignore[attr-defined]
        device.before_batch = rest
    before = fleet.clock()
    fleet.run()
    assert fleet.clock() - before > 240
    assert all(fleet.counted[number] == list(FIVE) for number in (1, 2, 3))


def test_premature_round_done_does_not_change_the_weights(tmp_path: Path) -> None:
    """Its trunk is not summed up before all its batches have trained it."""
    commits = []
    for early in (False, True):
        fleet = averaging(tmp_path / f"{early}", 2, client_averaging="none")
        device = fleet.devices[in_order(FIVE)[1]]

        def say_done(_number: int, phase: str, step: int, device: Any = device) -> None:
            if phase == "train" and step == 0:
                device._finish(device._opened)

        if early:
            device.before_batch = say_done
        fleet.run()
        commits.append([fleet.commits[number].weights_sha256 for number in (1, 2, 3)])
    assert commits[0] == commits[1]
