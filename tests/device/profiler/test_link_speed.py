# SPDX-License-Identifier: Apache-2.0
"""The echo over real brokers measures the link, or reports why it cannot."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from splitee.mqtt.options import LinkOptions
from splitee_device.profiler.link_speed import open_echo
from splitee_lab.local.brokers import MOSQUITTO_SETTINGS, RestartableBroker, RunningBroker


def options(address: object) -> LinkOptions:
    return LinkOptions(address, "echo", 10.0, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1000, 3 << 20], ids=["one packet", "in parts"])
def test_echo_measures_the_speed_of_a_real_link(broker: RunningBroker, size: int) -> None:
    with open_echo(options(broker.address), "pi-1") as echo:
        speed = echo.speed(size)
    assert speed is not None
    assert 1e4 < speed.upload < 1e11  # bytes a second over loopback
    assert 0 < speed.round_trip < 5
    assert 0 < speed.message_cpu <= speed.cpu(size) < 5


@pytest.mark.mosquitto
def test_dropped_echo_is_logged_in_one_line_with_its_topic(
    make_broker: Callable[..., RestartableBroker],
    public_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("splitee_device.profiler.link_speed.PATIENCE", 0.5)
    rules = public_path / "acl"
    rules.write_text("topic write #\n")
    own = make_broker("mosquitto", f"{MOSQUITTO_SETTINGS}acl_file {rules}\n")
    with caplog.at_level(logging.WARNING, "splitee_device"), open_echo(options(own.address), "pi-1") as echo:
        assert echo.speed(1000) is None
    (line,) = [record.message for record in caplog.records if record.name.endswith(".link_speed")]
    assert line.startswith("link not measured: ")
    assert "devices/pi-1/echo" in line


@pytest.mark.mosquitto
def test_refused_echo_topic_is_logged_with_the_likely_cause(
    make_broker: Callable[..., RestartableBroker], public_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rules = public_path / "acl"
    rules.write_text("topic read #\n")
    own = make_broker("mosquitto", f"{MOSQUITTO_SETTINGS}acl_file {rules}\n")
    with caplog.at_level(logging.WARNING, "splitee_device"), open_echo(options(own.address), "pi-1") as echo:
        assert echo.speed(1000) is None
    assert "is --id the name of this client's account or certificate?" in caplog.text
