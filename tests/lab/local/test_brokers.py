# SPDX-License-Identifier: Apache-2.0
"""Brokers for one machine: they start or report why not, and end with their caller."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from splitee.errors import ChildFailed, ConfigError
from splitee.mqtt.events import Connected
from splitee.mqtt.link import Link
from splitee_lab.local import brokers
from splitee_lab.local.brokers import MOSQUITTO_SETTINGS, RestartableBroker, mosquitto, open_broker

DEV_CONFIG = Path(__file__).parents[3] / "broker_config" / "mosquitto-dev.conf"


def statements(text: str) -> list[str]:
    lines = (line.strip() for line in text.splitlines())
    return sorted(line for line in lines if line and not line.startswith("#"))


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_mosquitto_settings_are_those_of_the_development_file() -> None:
    assert statements(DEV_CONFIG.read_text()) == sorted(
        ["listener 1883 127.0.0.1", *statements(MOSQUITTO_SETTINGS)]
    )


@pytest.mark.parametrize("choice", [pytest.param("mosquitto", marks=pytest.mark.mosquitto), "embedded"])
def test_chosen_broker_serves_and_ends(
    choice: str, tmp_path: Path, make_broker: Callable[..., RestartableBroker]
) -> None:
    with open_broker(choice, tmp_path) as broker:
        assert broker.kind == choice
        assert broker.address.host == "127.0.0.1"
        link = Link(broker.address, "one")
        link.open(5)
        assert link.receive(5) == Connected(fresh=True)
        link.close()
        assert broker.pid is not None
    assert not is_alive(broker.pid)


def test_auto_prefers_mosquitto_and_falls_back_to_the_embedded_broker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = "embedded" if brokers.find_mosquitto() is None else "mosquitto"
    with open_broker("auto", tmp_path) as broker:
        assert broker.kind == expected
    monkeypatch.setattr(brokers, "find_mosquitto", lambda: None)
    with open_broker("auto", tmp_path) as broker:
        assert broker.kind == "embedded"
    with pytest.raises(ConfigError, match="apt install mosquitto"), open_broker("mosquitto", tmp_path):
        pass


@pytest.mark.parametrize("address", ["mqtt://broker.example:1884", "wss://broker.example:8084/mqtt"])
def test_address_of_an_external_broker_is_taken_unchanged(address: str, tmp_path: Path) -> None:
    with open_broker(address, tmp_path) as broker:
        assert (broker.kind, str(broker.address), broker.pid) == ("external", address, None)
        broker.check()


@pytest.mark.parametrize("choice", ["", "rabbit", "localhost:1883", "http://localhost:1883"])
def test_unknown_broker_is_refused(choice: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected"), open_broker(choice, tmp_path):
        pass


@pytest.mark.mosquitto
def test_failed_start_of_a_broker_is_reported_with_its_last_words(
    make_broker: Callable[..., RestartableBroker],
) -> None:
    with pytest.raises(ChildFailed, match=r"mosquitto broker ended with status \d+: .*no_such_setting"):
        make_broker("mosquitto", MOSQUITTO_SETTINGS + "no_such_setting true\n")


@pytest.mark.mosquitto
def test_port_in_use_is_refused(make_broker: Callable[..., RestartableBroker], tmp_path: Path) -> None:
    port = make_broker("mosquitto").address.port
    with (
        pytest.raises(ConfigError, match=f"127.0.0.1:{port}: Address already in use"),
        mosquitto(tmp_path, port),
    ):
        pass


def test_check_raises_after_the_broker_has_died(
    broker_kind: str, make_broker: Callable[..., RestartableBroker]
) -> None:
    broker = make_broker(broker_kind).broker
    assert broker is not None
    assert broker.process is not None
    broker.check()
    broker.process.send_signal(signal.SIGKILL)
    broker.process.wait()
    with pytest.raises(ChildFailed, match=f"{broker_kind} broker ended with status -9"):
        broker.check()
