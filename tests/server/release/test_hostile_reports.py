# SPDX-License-Identifier: Apache-2.0
"""What a member can do with the messages of rollouts: its reports, its words on predictions, and clicks."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from release_fleet import ReleaseFleet
from tests.core.strategies import damaged, messages

from splitee.protocol.routes import Route
from splitee_server.release.releases import ROUTES
from splitee_server.release.rollouts import LINES

EVIL = "d3"
OF_DEVICES = [route for route in ROUTES if route.of_device]
SAID = st.sampled_from(OF_DEVICES).flatmap(
    lambda route: st.tuples(
        st.just(route), (valid := messages(route.message).map(lambda each: each.encode())) | damaged(valid)
    )
)


def test_a_report_that_flips_fills_no_log_and_the_others_are_heard(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = ReleaseFleet(tmp_path)
    fleet.begin()
    fleet.wake(*fleet.devices)
    with caplog.at_level(logging.INFO):
        for number in range(500):
            fleet.says(EVIL, "downloading" if number % 2 else "trying", reason=f"lie {number}")
        fleet.says("d0", "downloading")
    lines = [record.message for record in caplog.records]
    assert LINES <= sum(line.startswith(f"{EVIL}:") for line in lines) <= LINES + 500 / 60 + 1
    assert any(line.startswith("d0: model") for line in lines)


def test_nothing_that_is_said_of_releases_raises_what_nobody_foresees(tmp_path: Path) -> None:
    fleet = ReleaseFleet(tmp_path)
    fleet.begin()

    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(SAID)
    def said(attempt: tuple[Route, bytes]) -> None:
        route, payload = attempt
        fleet.hear(route, EVIL, payload)
        assert fleet.gate.rejected[EVIL, "unhandled"] == 0

    said()
    assert fleet.gate.rejected[EVIL, "malformed"] > 0
