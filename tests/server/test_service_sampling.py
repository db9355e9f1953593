# SPDX-License-Identifier: Apache-2.0
"""Rounds of a sample of the devices, and rounds of a fixed time: the service with a fake port and clock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from virtual_fleet import TOPICS, VirtualDevice, VirtualFleet

from splitee.cli.signals import Stopped
from splitee.protocol import routes
from splitee.protocol.fleet import DeviceStatus
from splitee.protocol.rounds import RoundOpen
from splitee.protocol.routes import Route
from splitee_server.rounds.policy import Policy
from splitee_server.rounds.sampling import picks

FIVE = tuple(f"pi-{number}" for number in range(1, 6))
SKIP = Policy(devices=5, quorum=1, missing="skip", floor=60.0)
TWO = {"sample": "2", "rounds": 5, "client_averaging": "layerwise"}


def trained(fleet: VirtualFleet) -> dict[int, set[str]]:
    """The devices that were to train, by round."""
    found: dict[int, set[str]] = {}
    for device in fleet.devices.values():
        for phase, number, _ in device.parts:
            if phase == "train":
                found.setdefault(number, set()).add(device.name)
    return found


def steps(fleet: VirtualFleet, number: int) -> list[int]:
    """The number of batches in a round's training, by device."""
    return [
        part.steps
        for device in fleet.devices.values()
        for phase, of, part in device.parts
        if (phase, of) == ("train", number)
    ]


def test_round_trains_its_sample_and_the_last_evaluation_has_all_devices(tmp_path: Path) -> None:
    fleet = VirtualFleet(tmp_path, *FIVE, **TWO)
    fleet.run()
    expected = [set(picked) for picked in picks(fleet.spec, fleet.devices)]
    assert [trained(fleet)[number] for number in range(1, 6)] == expected
    evaluated = [
        {name for name, values in metrics.devices.items() if values.held_out_samples and not values.evaluated}
        for metrics in fleet.metrics
    ]
    assert evaluated == [*expected[:-1], set(FIVE)]


def test_devices_that_were_not_evaluated_keep_their_earlier_metrics(tmp_path: Path) -> None:
    fleet = VirtualFleet(tmp_path, *FIVE, **TWO)
    fleet.run()
    first, second = fleet.metrics[0], fleet.metrics[1]
    only_first = next(iter(set(samples_of(fleet, 1)) - set(samples_of(fleet, 2))))
    known = second.devices[only_first]
    assert known.evaluated == 1
    assert known.trunk_accuracy == first.devices[only_first].trunk_accuracy is not None
    assert second.fleet.images == sum(second.devices[name].held_out_samples for name in samples_of(fleet, 2))


def samples_of(fleet: VirtualFleet, number: int) -> list[str]:
    return list(picks(fleet.spec, fleet.devices))[number - 1]


def test_all_devices_can_evaluate_each_round(tmp_path: Path) -> None:
    fleet = VirtualFleet(tmp_path, *FIVE, **TWO, evaluated_by="all")
    fleet.run()
    assert all(not values.evaluated for metrics in fleet.metrics for values in metrics.devices.values())
    assert {metrics.fleet.images for metrics in fleet.metrics} == {fleet.metrics[-1].fleet.images}


def test_device_of_a_cut_without_earlier_rounds_starts_from_the_averages(tmp_path: Path) -> None:
    """Each device of the sample of one is the only one of its cut in the round."""
    fleet = VirtualFleet(tmp_path, "pi-1", "pi-2", sample="1", rounds=2, client_averaging="layerwise")
    fleet.run()
    bases = {
        number: part.base
        for device in fleet.devices.values()
        for phase, number, part in device.parts
        if phase == "train"
    }
    assert bases == {1: 0, 2: 1}


@pytest.mark.parametrize("evaluates", ["sample", "all"])
def test_server_stopped_in_a_round_samples_the_same_devices_again(tmp_path: Path, evaluates: Any) -> None:
    whole = VirtualFleet(tmp_path / "whole", *FIVE, **TWO, evaluated_by=evaluates)
    expected = whole.run()
    stopped = VirtualFleet(tmp_path / "stopped", *FIVE, **TWO, evaluated_by=evaluates)

    def stop(opened: RoundOpen) -> None:
        stopped.stopped = (opened.phase, opened.round) == ("train", 3)

    stopped.on_phase = stop
    with pytest.raises(Stopped):
        stopped.run()
    again = VirtualFleet(tmp_path / "stopped", *FIVE, **TWO, evaluated_by=evaluates, instance=200)
    report = again.run()
    assert {number: trained(again)[number] for number in (3, 4, 5)} == {
        number: trained(whole)[number] for number in (3, 4, 5)
    }
    assert report["weights_sha256"] == expected["weights_sha256"]


def test_restarted_server_under_wait_waits_only_for_the_next_sample(tmp_path: Path) -> None:
    first = VirtualFleet(tmp_path, *FIVE, **TWO)
    first.on_phase = lambda opened: setattr(first, "stopped", (opened.phase, opened.round) == ("train", 2))
    with pytest.raises(Stopped):
        first.run()
    again = VirtualFleet(tmp_path, *FIVE, **TWO, instance=200)
    wanted = samples_of(again, 2)
    for name in set(FIVE) - set(wanted):
        hold_back(again.devices[name], 500)
    times: list[float] = []
    again.on_phase = lambda opened: times.append(again.clock()) if opened.phase == "train" else None
    before = again.clock()
    again.run()
    assert times[0] - before < 10
    assert times[-1] - before >= 500


def hold_back(device: VirtualDevice, seconds: float) -> None:
    """The device joins only after so many seconds."""
    join = device.join

    def later(**changed: Any) -> None:
        publish = device.publish
        device.publish = lambda route, payload, _seconds=0.0: publish(route, payload, seconds)  # type: ignore
        join(**changed)
        device.publish = publish  # type: ignore[method-assign]
        device.pause(seconds)

    device.join = later  # type: ignore[method-assign]


def test_offline_device_is_not_sampled_under_skip(tmp_path: Path) -> None:
    fleet = VirtualFleet(tmp_path, *FIVE, policy=SKIP, **TWO)
    gone = fleet.devices["pi-1"]

    def go(opened: RoundOpen) -> None:
        if (opened.phase, opened.round) == ("gather", 0):
            gone.publish(routes.STATUS, DeviceStatus(state="offline", instance=1).encode(), 1.0)

    hold_back(fleet.devices["pi-5"], 2.0)  # the last that the first round waits for
    fleet.on_phase = go
    before = fleet.clock()
    fleet.run()
    assert fleet.clock() - before < 60
    assert all("pi-1" not in devices for devices in trained(fleet).values())


def test_device_sampled_without_finishing_its_round_is_last_again(tmp_path: Path) -> None:
    """Otherwise devices that never end a round would be in each one, as those that have waited longest."""
    names, settings = FIVE[:4], {**TWO, "rounds": 4}
    fleet = VirtualFleet(tmp_path, *names, policy=Policy(4, 1, "skip", 60.0), **settings)
    never = fleet.devices["pi-1"]
    never.before_batch = lambda *_: never.pause()
    online = DeviceStatus(state="online", instance=1).encode()
    fleet.on_phase = lambda opened: (
        never.port.deliver(routes.STATUS.topic(TOPICS, "pi-1"), online)
        if opened.phase == "evaluate"
        else None
    )
    fleet.run()
    of_rounds = [number for phase, number, _ in never.parts if phase == "train"]
    assert len(of_rounds) == 2
    assert of_rounds[1] - of_rounds[0] == 2


# Rounds of a fixed time

TIMED = {"round_seconds": 60.0, "rounds": 3}


def timed_fleet(path: Path, **settings: Any) -> VirtualFleet:
    """Two devices with 100 batches each; the second takes two seconds for a batch."""
    fleet = VirtualFleet(path, "pi-1", "pi-2", **TIMED, **settings)
    for device in fleet.devices.values():
        join = device.join
        device.join = lambda join=join, **changed: join(**{"train_samples": 400, **changed})  # type: ignore
    slow = fleet.devices["pi-2"]
    publish = slow.publish

    def slowly(route: Route, payload: bytes, seconds: float = 0.0) -> None:
        publish(route, payload, 2.0 if route is routes.FEATURES else seconds)

    slow.publish = slowly  # type: ignore[method-assign]
    return fleet


@pytest.mark.parametrize("strategy", ["sequential", "averaging"])
def test_steps_of_a_timed_round_follow_the_speed_of_each_device(tmp_path: Path, strategy: str) -> None:
    fleet = timed_fleet(tmp_path, strategy=strategy)
    fleet.run()
    assert steps(fleet, 1) == [8, 8]  # no speed is known yet
    assert [steps(fleet, number) for number in (2, 3)] == [[100, 30], [100, 30]]


@pytest.mark.parametrize(
    ("claims", "expected"), [(1e-9, [100, 30]), (0.0, [100, 30]), (1e300, [34, 30]), (float("inf"), [34, 30])]
)
def test_claimed_batch_time_is_bounded_by_arrivals_and_round_time(
    tmp_path: Path, claims: float, expected: list[int]
) -> None:
    fleet = timed_fleet(tmp_path)
    for device in fleet.devices.values():
        device.claims = claims
    fleet.run()
    assert steps(fleet, 2) == expected


def test_resumed_timed_round_has_the_same_steps(tmp_path: Path) -> None:
    whole = timed_fleet(tmp_path / "whole")
    expected = whole.run()
    fleet = timed_fleet(tmp_path / "stopped")
    fleet.on_phase = lambda opened: setattr(fleet, "stopped", (opened.phase, opened.round) == ("train", 3))
    with pytest.raises(Stopped):
        fleet.run()
    again = timed_fleet(tmp_path / "stopped", instance=200)
    report = again.run()
    assert steps(again, 3) == steps(whole, 3)
    assert report["weights_sha256"] == expected["weights_sha256"]
