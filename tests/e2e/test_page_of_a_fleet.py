# SPDX-License-Identifier: Apache-2.0
"""The page of a real fleet in the middle of its rounds: a device dies, the server dies and comes back."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fleets import Fleet
from page_streams import PageStream
from waiting import until

from splitee_lab.local.brokers import RunningBroker

RED = 5.0  # seconds within which a death is shown
LONG = 120.0
OF_A_ROUND = {"round-opened", "round-committed", "round-evaluated"}


@pytest.mark.slow(15)
@pytest.mark.mosquitto
def test_page_shows_deaths_within_seconds_and_follows_the_restart(
    mosquitto_broker: RunningBroker, tmp_path: Path
) -> None:
    with Fleet(str(mosquitto_broker.address), "paged", tmp_path) as fleet:
        fleet.start("page", "page", *fleet.link, "--listen", "127.0.0.1:0")
        until(lambda: "http" in fleet.log("page"), lambda: fleet.log("page"))
        (url,) = re.findall(r"http://\S+", fleet.log("page"))
        with PageStream(url) as seen:
            until(lambda: seen.broker["connected"], lambda: fleet.log("page"))
            fleet.server(devices=2, rounds=200)
            fleet.device("pi-1", 1, shard="1/2")
            fleet.device("pi-2", 3, shard="2/2")
            until(lambda: set(seen.kinds()) >= OF_A_ROUND, lambda: fleet.log("server"), long=LONG)
            until(lambda: seen.fleet["phase"]["phase"] == "train", long=LONG)
            with PageStream(url) as reloaded:
                assert reloaded.names[0] == "whole"
                assert reloaded.fleet["run"] == seen.fleet["run"]
                assert reloaded.fleet["committed"] >= 1
                assert set(reloaded.kinds()) >= OF_A_ROUND
                assert {name: device["cut"] for name, device in reloaded.devices.items()} == {
                    "pi-1": 1,
                    "pi-2": 3,
                }
            assert _shown_after_death(fleet, "pi-2", lambda: not seen.devices["pi-2"]["online"]) < RED
            until(lambda: seen.kinds("pi-2")[-1] == "offline", lambda: seen.log)
            assert _shown_after_death(fleet, "server", lambda: _state(seen) == "offline") < RED
            until(lambda: "server-offline" in seen.kinds(), lambda: seen.log)
            committed = seen.fleet["committed"]
            fleet.server(devices=2, rounds=200)
            fleet.device("pi-2", 3, shard="2/2")
            until(lambda: _state(seen) == "online", lambda: fleet.log("server"), long=LONG)
            until(lambda: seen.devices["pi-2"]["online"], lambda: fleet.log("pi-2"), long=LONG)
            until(lambda: seen.fleet["committed"] > committed, lambda: fleet.log("server"), long=LONG)
            assert "server-online" in seen.kinds()
        assert fleet.processes["page"].poll() is None


def _state(seen: PageStream) -> str:
    return str(seen.fleet["server"]["state"])


def _shown_after_death(fleet: Fleet, name: str, is_shown: Callable[[], bool]) -> float:
    """Seconds from a process's SIGKILL until the page shows it."""
    fleet.processes[name].kill()
    fleet.processes[name].wait()
    died = time.monotonic()
    until(is_shown, long=LONG)
    return time.monotonic() - died
