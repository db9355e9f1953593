# SPDX-License-Identifier: Apache-2.0
"""Reports that come late, come twice, or are of an earlier rollout of the same release."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from release_fleet import WAVES, ReleaseFleet

from splitee_server.release.plans import AT_ONCE


@pytest.fixture
def fleet(tmp_path: Path) -> ReleaseFleet:
    fleet = ReleaseFleet(tmp_path)
    fleet.wake(*fleet.devices)
    return fleet


def test_late_report_of_a_replaced_rollout_does_not_restore_its_offer(fleet: ReleaseFleet) -> None:
    fleet.begin("a", b"old", AT_ONCE)
    *_, last = fleet.begin("b", b"newer", WAVES)
    fleet.report(last, "downloading", "a", have=3)  # it has not got the newer offer yet
    assert fleet.offer(last) is None
    older = fleet.releases.rollouts.find("a")
    assert older is not None
    assert older.record.devices[last].reason == "replaced by b"


def test_server_killed_before_recording_a_replacement_makes_it_at_restart(fleet: ReleaseFleet) -> None:
    fleet.begin("a", b"old", AT_ONCE)
    fleet.releases.begin(fleet.content(b"newer"), "b", WAVES)
    fleet.restart()
    fleet.settle()
    older = fleet.releases.rollouts.find("a")
    assert older is not None
    assert {standing.reason for standing in older.record.devices.values()} == {"replaced by b"}
    assert len(fleet.offered) == 1


def test_retained_failure_of_an_earlier_rollout_does_not_count_in_the_next(fleet: ReleaseFleet) -> None:
    """The broker delivers the earlier report again whenever the server connects to it."""
    fleet.begin("a", pace=replace(AT_ONCE, max_failures="0"), devices=["d0"])
    fleet.report("d0", "failed", reason="a power cut", time=7.0)
    assert fleet.rollout("a").state == "stopped"
    fleet.begin("b", pace=replace(AT_ONCE, max_failures="0"), devices=["d0"])
    fleet.report("d0", "failed", "b", reason="a power cut", time=7.0, retained=True)
    fleet.restart()
    fleet.report("d0", "failed", "b", reason="a power cut", time=7.0, retained=True)
    assert (fleet.rollout("b").state, fleet.offered) == ("running", {"d0"})
    fleet.report("d0", "failed", "b", reason="once more", time=9.0)
    assert fleet.rollout("b").reason == "1 failed, 0 may: d0: once more"


def test_rollout_of_a_release_already_in_service_finishes_without_reports(fleet: ReleaseFleet) -> None:
    """Its offer is the same as before, so that no device reports anything."""
    fleet.begin("a", pace=AT_ONCE)
    for device in fleet.devices:
        fleet.report(device, "in service", time=7.0)
    fleet.begin("b", pace=AT_ONCE)
    assert fleet.rollout("b").state == "finished"
