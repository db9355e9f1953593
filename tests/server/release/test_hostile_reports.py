# SPDX-License-Identifier: Apache-2.0
"""Hostile messages of a device about rollouts: reports, serving statuses and install clicks."""

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
ATTEMPTS = st.sampled_from(OF_DEVICES).flatmap(
    lambda route: st.tuples(
        st.just(route), (valid := messages(route.message).map(lambda each: each.encode())) | damaged(valid)
    )
)


def test_log_lines_about_flipping_reports_are_limited_per_device(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = ReleaseFleet(tmp_path)
    fleet.begin()
    fleet.wake(*fleet.devices)
    with caplog.at_level(logging.INFO):
        for number in range(500):
            fleet.report(EVIL, "downloading" if number % 2 else "trying", reason=f"lie {number}")
        fleet.report("d0", "downloading")
    lines = [record.message for record in caplog.records]
    assert LINES <= sum(line.startswith(f"{EVIL}:") for line in lines) <= LINES + 500 / 60 + 1
    assert any(line.startswith("d0: model") for line in lines)


def test_arbitrary_release_messages_of_a_device_raise_no_unhandled_error(tmp_path: Path) -> None:
    fleet = ReleaseFleet(tmp_path)
    fleet.begin()

    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(ATTEMPTS)
    def attempt_is_handled(attempt: tuple[Route, bytes]) -> None:
        route, payload = attempt
        fleet.deliver(route, EVIL, payload)
        assert fleet.gate.rejected[EVIL, "unhandled"] == 0

    attempt_is_handled()
    assert fleet.gate.rejected[EVIL, "malformed"] > 0
