# SPDX-License-Identifier: Apache-2.0
"""Devices that are late, skipped or waited for: the service with a fake port and clock."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from virtual_fleet import TOPICS, VirtualDevice, VirtualFleet

from splitee.protocol import routes
from splitee.protocol.cut_batch import EVALUATION_BATCH
from splitee.protocol.fleet import DeviceStatus, ServerStatus
from splitee.protocol.parts import PART_OVERHEAD, split
from splitee.protocol.rounds import Features
from splitee.protocol.routes import Route
from splitee_server.rounds.policy import Policy

SKIP = Policy(devices=3, quorum=1, missing="skip", floor=60.0)
THREE = ("pi-1", "pi-2", "pi-3")


@pytest.fixture
def fleet(tmp_path: Path) -> VirtualFleet:
    return VirtualFleet(tmp_path / "server", *THREE)


@pytest.fixture
def skipping(tmp_path: Path) -> VirtualFleet:
    return VirtualFleet(tmp_path / "server", *THREE, policy=SKIP, rounds=3, client_averaging="none")


def test_late_device_is_skipped_at_the_deadline(skipping: VirtualFleet) -> None:
    late = skipping.devices["pi-3"]

    def fall_silent(number: int, phase: str, step: int) -> None:
        if (number, phase, step) == (2, "train", 1):
            late.pause()

    late.before_batch = fall_silent
    before = skipping.clock()
    skipping.run()
    assert [skipping.counted[number] for number in (1, 2, 3)] == [
        list(THREE), ["pi-1", "pi-2"], ["pi-1", "pi-2"],
    ]  # fmt: skip
    assert 60 <= skipping.clock() - before < 70  # the deadline's floor, once


@pytest.mark.parametrize("arrived", [0, 1])
def test_accuracies_do_not_contain_a_device_that_drops_out_of_the_evaluation(
    skipping: VirtualFleet, arrived: int
) -> None:
    """Whether or not batches of it have come: how many is a matter of chance."""
    late = skipping.devices["pi-3"]
    late.profile = replace(late.profile, held_out_samples=3 * EVALUATION_BATCH)

    def fall_silent(number: int, phase: str, step: int) -> None:
        if (number, phase, step) == (2, "evaluate", arrived):
            late.pause()

    late.before_batch = fall_silent
    skipping.run()
    judged = [
        [device for device, found in sorted(each.devices.items()) if found.trunk_accuracy is not None]
        for each in skipping.metrics
    ]
    assert judged == [list(THREE), ["pi-1", "pi-2"], ["pi-1", "pi-2"]]
    assert skipping.metrics[1].fleet.images == 2 * 4  # a batch of each


def test_silent_device_in_the_first_round_is_skipped_after_ten_times_the_floor(
    skipping: VirtualFleet,
) -> None:
    """The duration of a round is not known yet."""
    slow = skipping.devices["pi-3"]
    slow.before_batch = lambda _number, _phase, _step: slow.pause()
    before = skipping.clock()
    skipping.run()
    assert skipping.counted[1] == ["pi-1", "pi-2"]
    assert 600 <= skipping.clock() - before < 610  # ten times the floor


def vanish(fleet: VirtualFleet, name: str, number: int, step: int) -> None:
    """A device sends nothing from this batch on; the broker publishes its last will."""
    device = fleet.devices[name]

    def before_batch(current: int, phase: str, batch: int) -> None:
        if (current, phase, batch) == (number, "train", step):
            device.pause()
            device.publish(routes.STATUS, DeviceStatus(state="offline", instance=1).encode())

    device.before_batch = before_batch


@pytest.mark.parametrize("strategy", ["sequential", "averaging", "data-parallel"])
@pytest.mark.parametrize("step", [0, 1])
def test_device_that_vanishes_in_the_first_round_is_skipped_after_the_floor(
    tmp_path: Path, strategy: str, step: int
) -> None:
    """Its last will tells that it is gone, and not slow."""
    fleet = VirtualFleet(tmp_path / "server", *THREE, policy=SKIP, rounds=2, strategy=strategy)
    vanish(fleet, "pi-3", 1, step)
    before = fleet.clock()
    report = fleet.run()
    assert 60 <= fleet.clock() - before < 70
    assert [device["batches"] for device in report["devices"]] == [6, 6, 0]


def test_slow_device_is_not_late_after_a_first_round_without_another(tmp_path: Path) -> None:
    """The duration of a round is not known yet: it takes pi-1 two minutes."""
    fleet = VirtualFleet(tmp_path / "server", *THREE, policy=SKIP, rounds=3)
    vanish(fleet, "pi-3", 1, 1)
    slow = fleet.devices["pi-1"]
    publish = slow.publish

    def slowly(route: Route, payload: bytes, seconds: float = 0.0) -> None:
        publish(route, payload, 40.0 if route is routes.FEATURES else seconds)

    slow.publish = slowly  # type: ignore[method-assign]
    report = fleet.run()
    assert [device["batches"] for device in report["devices"]] == [9, 9, 0]


@pytest.mark.parametrize("missing", ["skip", "wait"])
def test_device_gone_before_the_first_round_is_waited_for_under_wait_only(
    tmp_path: Path, missing: Any
) -> None:
    policy = Policy(devices=3, quorum=2, missing=missing, floor=60.0)
    fleet = VirtualFleet(tmp_path / "server", *THREE, policy=policy)
    late, gone = fleet.devices["pi-2"], fleet.devices["pi-3"]
    late.join = lambda **_changed: None  # type: ignore[method-assign]

    def says(device: VirtualDevice, state: Any, seconds: float) -> None:
        device.publish(routes.STATUS, DeviceStatus(state=state, instance=1).encode(), seconds)

    says(gone, "offline", 10)
    says(late, "online", 100)
    late.publish(routes.PROFILE, late.profile.encode(), 100)
    says(gone, "online", 5000)
    before = fleet.clock()
    report = fleet.run()
    assert fleet.clock() - before == pytest.approx(100 if missing == "skip" else 5000, abs=2)
    assert [device["batches"] for device in report["devices"]] == [6, 6, 0 if missing == "skip" else 6]


def test_round_waits_past_its_deadline_for_the_quorum(tmp_path: Path) -> None:
    policy = Policy(devices=3, quorum=3, missing="skip", floor=60.0)
    fleet = VirtualFleet(tmp_path, *THREE, policy=policy)
    late = fleet.devices["pi-3"]

    def pause(number: int, phase: str, step: int) -> None:
        if (number, phase, step) == (2, "train", 1) and fleet.clock() < before + 300:
            late.pause(300)

    late.before_batch = pause
    before = fleet.clock()
    fleet.run()
    assert fleet.clock() - before >= 300
    assert fleet.counted[2] == list(THREE)


def test_offline_device_is_waited_for_and_named_under_wait(
    fleet: VirtualFleet, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "splitee_server")
    late = fleet.devices["pi-2"]
    before = fleet.clock()

    def pause(number: int, phase: str, step: int) -> None:
        if (number, phase, step) == (1, "train", 1) and fleet.clock() < before + 5000:
            late.publish(routes.STATUS, DeviceStatus(state="offline", instance=1).encode())
            late.publish(routes.STATUS, DeviceStatus(state="online", instance=1).encode(), 5000)
            late.pause(5000)

    late.before_batch = pause
    fleet.run()
    assert fleet.counted[1] == list(THREE)
    assert "round 1 of 2: training: waiting for pi-2 (2 online)" in caplog.text
    waiting = [
        ServerStatus.decode(payload).waiting_for for payload in fleet.port.payloads(TOPICS.server_status)
    ]
    assert ("pi-2",) in waiting


def over_a_slow_link(
    device: VirtualDevice, number: int, *, parts: int, pause: float, ends: bool = True
) -> None:
    """The device's batches of this round come in `parts` parts, with a pause before each.

    `ends`: False: the last part never comes; instead come the first parts of further batches, endlessly.
    """
    publish, messages = device.publish, count()

    def slowly(route: Route, payload: bytes, seconds: float = 0.0) -> None:
        if route is not routes.FEATURES or Features.decode(payload).round != number:
            publish(route, payload, seconds)
            return
        limit = -(-len(payload) // parts) + PART_OVERHEAD
        pieces = list(split(payload, limit, next(messages)))
        if not ends:
            pieces = [
                piece for _ in range(1000) for piece in list(split(payload, limit, next(messages)))[:-1]
            ]
        for index, piece in enumerate(pieces, start=1):
            publish(route, piece, seconds + index * pause)

    device.publish = slowly  # type: ignore[method-assign]


def test_device_is_not_late_while_its_bytes_arrive(skipping: VirtualFleet) -> None:
    over_a_slow_link(skipping.devices["pi-3"], 2, parts=10, pause=20.0)
    before = skipping.clock()
    skipping.run()
    assert [skipping.counted[number] for number in (1, 2, 3)] == [list(THREE)] * 3
    assert skipping.clock() - before > 200  # a batch takes more than three times the floor


def test_device_is_late_when_its_bytes_stop(skipping: VirtualFleet) -> None:
    over_a_slow_link(skipping.devices["pi-3"], 2, parts=10, pause=70.0)
    before = skipping.clock()
    skipping.run()
    assert skipping.counted[2] == ["pi-1", "pi-2"]
    assert skipping.clock() - before < 130


@pytest.mark.parametrize(("number", "longest"), [(1, 6000), (2, 600)])  # ten times a silent device's
def test_device_that_sends_endlessly_is_late_eventually(
    skipping: VirtualFleet, number: int, longest: float
) -> None:
    over_a_slow_link(skipping.devices["pi-3"], number, parts=4, pause=20.0, ends=False)
    before = skipping.clock()
    skipping.run()
    assert skipping.counted[number] == ["pi-1", "pi-2"]
    assert longest <= skipping.clock() - before < 1.1 * longest + 50
