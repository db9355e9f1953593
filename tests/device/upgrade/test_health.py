# SPDX-License-Identifier: Apache-2.0
"""When a process reports that its software has come up."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import FakeClock

from splitee.mqtt.address import BrokerAddress
from splitee_device.upgrade.health import STEADY, Health
from splitee_device.upgrade.software import BROKER, CURRENT, RUNS, TRIED, Software

NAME, ADDRESS = "0.2.0-aaaaaaaaaaaa", BrokerAddress("hub.test", 8883)


@pytest.fixture
def software(tmp_path: Path) -> Software:
    made = Software(tmp_path)
    python = made.python(NAME)
    python.parent.mkdir(parents=True)
    python.touch(0o755)
    made.point(TRIED, NAME)
    return made


def test_software_is_in_service_once_the_connection_has_held(
    software: Software, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RUNS, NAME)
    clock = FakeClock()
    health = Health(ADDRESS, software, clock)
    health.tick(True)
    clock.advance(STEADY - 0.1)
    health.tick(False)  # the connection is lost, and the wait begins anew
    clock.advance(STEADY)
    health.tick(True)
    clock.advance(STEADY - 0.1)
    health.tick(True)
    assert software.target(CURRENT) is None
    clock.advance(0.1)
    health.tick(True)
    assert software.in_service == NAME
    assert software.broker() == ("hub.test", 8883)


def test_process_of_other_software_does_not_end_the_trial(
    software: Software, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a process of the old software that has not ended yet."""
    monkeypatch.setenv(RUNS, "0.1.0-bbbbbbbbbbbb")
    clock = FakeClock()
    health = Health(ADDRESS, software, clock)
    for _ in range(3):
        health.tick(True)
        clock.advance(STEADY)
    assert software.target(TRIED) == NAME


def test_software_comes_up_once_its_links_can_be_written(
    software: Software, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The links are written again until they can be; the broker's address is not waited for."""
    monkeypatch.setenv(RUNS, NAME)
    (software.path / ".previous.new").mkdir()  # no link can be made there
    clock = FakeClock()
    health = Health(ADDRESS, software, clock)
    for _ in range(2):
        health.tick(True)
        clock.advance(STEADY)
    assert software.target(TRIED) == NAME
    (software.path / ".previous.new").rmdir()
    (software.path / f".{BROKER}.new").mkdir()
    for _ in range(2):
        health.tick(True)
        clock.advance(STEADY)
    assert software.in_service == NAME


@pytest.mark.parametrize("launcher", ["", "1", "-1", "x"])
def test_process_not_started_by_the_launcher_has_no_software(
    software: Software, monkeypatch: pytest.MonkeyPatch, launcher: str
) -> None:
    monkeypatch.setenv("SPLITEE_SOFTWARE", str(software.path))
    monkeypatch.setenv("SPLITEE_LAUNCHER", launcher)
    assert Software.of_this_process() is None
