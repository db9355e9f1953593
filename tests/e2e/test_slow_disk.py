# SPDX-License-Identifier: Apache-2.0
"""A card that needs longer for an fsync than the watchdog waits: no process is ended for it."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from fleets import Fleet
from slow_disk import SLOW, main_on_a_slow_disk

from splitee_lab.local.brokers import RunningBroker
from systemd import FakeSystemd

WATCHDOG = 2.0  # seconds


@pytest.mark.slow(15)
@pytest.mark.mosquitto
def test_slow_fsync_does_not_expire_the_watchdog_of_device_or_server(
    mosquitto_broker: RunningBroker, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        listening = {
            name: stack.enter_context(FakeSystemd(tmp_path / f"notify-{name}", WATCHDOG))
            for name in ("server", "pi-1")
        }
        fleet = stack.enter_context(Fleet(str(mosquitto_broker.address), "slow-disk", tmp_path))
        programs = {
            name: partial(main_on_a_slow_disk, systemd.environment) for name, systemd in listening.items()
        }
        fleet.server(devices=1, rounds=1, program=programs["server"])
        fleet.device("pi-1", 2, program=programs["pi-1"])
        assert fleet.wait() == [0, 0], fleet.log("pi-1")
    for name, systemd in listening.items():
        assert systemd.slowest >= SLOW, f"{name} has written nothing slowly"
        assert systemd.expired == [], name
        assert "READY=1" in systemd.states
        assert systemd.states[-1] == "STOPPING=1"
