# SPDX-License-Identifier: Apache-2.0
"""What delays the next wave: late devices, devices that vanish in a trial, and unknown states."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from release_fleet import WAVES, ReleaseFleet

TWO = replace(WAVES, waves=("2", "100%"), late_after=100.0)


@pytest.fixture
def fleet(tmp_path: Path) -> ReleaseFleet:
    return ReleaseFleet(tmp_path)


def test_undecided_device_delays_the_next_wave_until_it_is_late(fleet: ReleaseFleet) -> None:
    fleet.wake(*fleet.devices)
    first, second, *_ = fleet.begin(pace=TWO)
    fleet.report(first, "in service")
    fleet.report(second, "downloading", have=1)
    fleet.tick(80)
    assert fleet.offered == {first, second}
    fleet.tick(30)
    assert fleet.offered == set(fleet.devices)
    assert [wave.late for wave in fleet.rollout().waves] == [1, 0]
    assert fleet.update(second).reason == "not decided within 100 s"
    fleet.report(second, "in service")
    assert [wave.late for wave in fleet.rollout().waves] == [0, 0]
    assert (fleet.update(second).state, fleet.update(second).reason) == ("in service", "")


def test_device_that_wakes_and_sleeps_in_turns_does_not_delay_waves_forever(fleet: ReleaseFleet) -> None:
    fleet.wake(*fleet.devices)
    first, second, *_ = fleet.begin(pace=replace(TWO, soak=60.0))
    fleet.report(first, "in service")
    for _ in range(10):
        fleet.wake(second, state="offline")
        fleet.tick(20)
        fleet.wake(second)
        fleet.tick(20)
    assert fleet.offered == set(fleet.devices)


def test_device_that_vanishes_in_its_trial_counts_as_failed_when_late(fleet: ReleaseFleet) -> None:
    fleet.wake(*fleet.devices)
    first, second, *_ = fleet.begin(pace=TWO)
    fleet.report(second, "trying")
    fleet.wake(second, state="offline")
    fleet.report(first, "in service")
    fleet.tick(80)
    assert fleet.offered == {first, second}
    fleet.tick(30)
    assert fleet.rollout().state == "stopped"
    assert fleet.rollout().reason == f"1 failed, 0 may: {second}: no trial result for 100 s"
    fleet.report(second, "in service")
    assert fleet.update(second).state == "in service"
    assert fleet.offered == {first, second}


def test_download_time_does_not_count_towards_the_trial_limit(fleet: ReleaseFleet) -> None:
    fleet.wake(*fleet.devices)
    first, second, *_ = fleet.begin(pace=TWO)
    fleet.report(first, "in service")
    fleet.tick(90)
    fleet.report(second, "trying")
    fleet.tick(90)
    assert (fleet.update(second).state, fleet.offered) == ("trying", {first, second})


def test_restarted_server_collects_device_states_before_the_next_wave(fleet: ReleaseFleet) -> None:
    fleet.wake(*fleet.devices)
    first, second, *_ = fleet.begin(pace=TWO)
    fleet.report(first, "in service")
    fleet.restart()
    fleet.tick(1.0)
    fleet.report(second, "downloading", retained=True)
    fleet.wake(second)
    fleet.tick(50)
    assert fleet.offered == {first, second}


def test_next_wave_does_not_start_while_the_broker_is_disconnected(fleet: ReleaseFleet) -> None:
    fleet.wake(*fleet.devices)
    first, second, *_ = fleet.begin(pace=replace(TWO, soak=60.0))
    fleet.report(first, "in service")
    fleet.report(second, "in service")
    fleet.port.connected = False
    fleet.tick(100)
    fleet.port.connected = True
    fleet.releases.rollouts.republish()
    fleet.tick(1.0)
    fleet.report(second, "failed", reason="torn", retained=True)
    fleet.settle()
    assert (fleet.rollout().state, fleet.rollout().wave) == ("stopped", 1)


def test_rollout_goes_on_when_its_whole_first_wave_is_dismissed(fleet: ReleaseFleet) -> None:
    fleet.wake(*fleet.devices)
    first, second, *_ = fleet.begin(pace=replace(WAVES, waves=("1", "2", "100%")))
    fleet.gone.add(first)
    fleet.tick()
    assert second in fleet.offered
    assert fleet.rollout().state == "running"
