# SPDX-License-Identifier: Apache-2.0
"""`--cut auto`: devices measure before they join, keep what they measured, and publish it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import warm
from fleets import Fleet

from splitee_lab.local.brokers import RunningBroker


def query(command: str, broker: RunningBroker, fleet: str) -> Any:
    done = warm.run(command, "--broker", broker.address, "--fleet", fleet, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow(11)
def test_devices_choose_their_cuts_and_publish_the_reason(
    mosquitto_broker: RunningBroker, tmp_path: Path
) -> None:
    auto = ("--cut", "auto", "--budget", "20")
    with Fleet(str(mosquitto_broker.address), "auto", tmp_path) as fleet:
        fleet.server(devices=2, rounds=1)
        fleet.device("pi-1", 1, *auto, "--prefer", "deepest", shard="1/2")
        fleet.device("pi-2", 1, *auto, "--prefer", "lightest", shard="2/2")
        assert fleet.wait() == [0, 0, 0], fleet.log("pi-1")
    found = {device["id"]: device for device in query("status", mosquitto_broker, "auto")["devices"]}
    assert found["pi-1"]["cut"] == 3
    for device in found.values():
        can = device["capability"]
        assert [cost["cut"] for cost in can["cuts"]] == [1, 2, 3]
        assert all(cost["fits"] and cost["seconds"] > 0 for cost in can["cuts"])
        assert can["reason"].startswith(f"cut {device['cut']} ")
        assert can["upload"] > 0
    planned = query("plan", mosquitto_broker, "auto")
    assert [row["device"] for row in planned] == ["pi-1", "pi-2"]
    assert all(row["cut"] in (1, 2, 3) for row in planned)

    # A new run uses the measurements again.
    with Fleet(str(mosquitto_broker.address), "auto-again", tmp_path) as fleet:
        fleet.server("--fresh", devices=1, rounds=1, name="server-2")
        fleet.device("pi-1", 1, *auto, "--prefer", "deepest", shard="1/2")
        assert fleet.wait() == [0, 0], fleet.log("pi-1")
        assert fleet.log("pi-1").count("measuring which cut suits this device") == 1
