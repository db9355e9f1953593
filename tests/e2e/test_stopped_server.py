# SPDX-License-Identifier: Apache-2.0
"""The log of a server that is stopped, and its log with -q and -v."""

from __future__ import annotations

from pathlib import Path

import pytest
from fleets import Fleet
from waiting import until

from splitee_lab.local.brokers import RunningBroker


def test_server_stopped_before_its_first_commit_reports_that(broker: RunningBroker, tmp_path: Path) -> None:
    with Fleet(str(broker.address), "stopped-early", tmp_path) as fleet:
        fleet.server(devices=1)
        until(lambda: "waiting for 1 device\n" in fleet.log("server"), lambda: fleet.log("server"))
        fleet.processes["server"].terminate()
        assert fleet.wait("server") == [0]
        said = f"stopped; no round is committed yet; the run's state is in {tmp_path / 'server'}"
        assert said in fleet.log("server")
        assert "last committed round" not in fleet.log("server")


@pytest.mark.slow(4)
def test_quiet_run_without_problems_logs_nothing(mosquitto_broker: RunningBroker, tmp_path: Path) -> None:
    with Fleet(str(mosquitto_broker.address), "quiet", tmp_path) as fleet:
        fleet.server("-q", devices=1, rounds=1)
        fleet.device("pi-1", 1, "-q")
        assert fleet.wait() == [0, 0]
        assert (fleet.log("server"), fleet.log("pi-1")) == ("", "")


def test_verbose_server_logs_messages_received_and_published(
    mosquitto_broker: RunningBroker, tmp_path: Path
) -> None:
    with Fleet(str(mosquitto_broker.address), "verbose", tmp_path) as fleet:
        fleet.server("-v", devices=1)
        until(
            lambda: "DEBUG received splitee/v1/verbose/server/status" in fleet.log("server"),
            lambda: fleet.log("server"),
        )
        fleet.processes["server"].terminate()
        assert fleet.wait("server") == [0]
        assert "DEBUG published splitee/v1/verbose/" in fleet.log("server")
