# SPDX-License-Identifier: Apache-2.0
"""A card that needs longer for an fsync than the watchdog waits: nobody is ended for it."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from fleets import Fleet

from splitee_lab.local.brokers import RunningBroker
from systemd import FakeSystemd

WATCHDOG = 4.0  # seconds
SLOW = 6  # seconds that an fsync of a round's state takes
SPLITEE_ON_A_SLOW_DISK = f"""
import os, sys, time
fsync = os.fsync
def slowly(descriptor):
    if os.fstat(descriptor).st_size > 10_000:  # a file, not a folder, and none of facts
        time.sleep({SLOW})
    fsync(descriptor)
os.fsync = slowly
from splitee.cli.main import main
main()
"""


@pytest.mark.slow(25)
@pytest.mark.mosquitto
def test_a_slow_fsync_is_no_reason_to_end_a_device_or_a_server(
    mosquitto_broker: RunningBroker, tmp_path: Path
) -> None:
    def program(systemd: FakeSystemd) -> tuple[str, ...]:
        variables = (f"{name}={value}" for name, value in systemd.environment.items())
        return "env", *variables, sys.executable, "-c", SPLITEE_ON_A_SLOW_DISK

    with ExitStack() as stack:
        listening = {
            name: stack.enter_context(FakeSystemd(tmp_path / f"notify-{name}", WATCHDOG))
            for name in ("server", "pi-1")
        }
        fleet = stack.enter_context(Fleet(str(mosquitto_broker.address), "slow-disk", tmp_path))
        fleet.server(devices=1, rounds=1, program=program(listening["server"]))
        fleet.device("pi-1", 2, program=program(listening["pi-1"]))
        assert fleet.wait() == [0, 0], fleet.log("pi-1")
    for name, systemd in listening.items():
        assert systemd.slowest >= SLOW, f"{name} has written nothing slowly"
        assert systemd.expired == [], name
        assert "READY=1" in systemd.states
        assert systemd.states[-1] == "STOPPING=1"
