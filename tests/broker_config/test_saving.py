# SPDX-License-Identifier: Apache-2.0
"""A real Mosquitto with the shipped configuration: how often it writes its database, and its contents."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from splitee.mqtt.address import BrokerAddress
from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee_lab.local.brokers import RestartableBroker

pytestmark = pytest.mark.mosquitto

SAVING = "persistence", "persistence_location", "autosave_interval", "autosave_on_changes"
FASTER = 600  # times as often as shipped: three seconds


def shipped() -> dict[str, str]:
    text = files("splitee_broker").joinpath("mosquitto.conf").read_text()
    return dict(re.findall(rf"(?m)^({'|'.join(SAVING)}) (.*)$", text))


@contextmanager
def saving_broker(**changed: str) -> Iterator[tuple[RestartableBroker, Path]]:
    """Mosquitto with the shipped settings for saving, except `changed`; and its database."""
    with TemporaryDirectory(prefix="splitee-saving-") as folder:
        state = Path(folder, "state")
        state.mkdir()
        for path in (Path(folder), state):
            path.chmod(0o777)  # Mosquitto gives up root's rights
        settings = shipped() | {"persistence_location": f"{state}/"} | changed
        lines = "".join(f"{name} {value}\n" for name, value in settings.items())
        broker = RestartableBroker("mosquitto", Path(folder), f"allow_anonymous true\n{lines}")
        broker.start()
        try:
            yield broker, state / "mosquitto.db"
        finally:
            broker.stop()


def publish(address: BrokerAddress, count: int, seconds: float) -> None:
    """Retained messages, spread over so many seconds."""
    link = Link(address, f"publisher-{count}")
    link.open(5)
    started = time.monotonic()
    for number in range(count):
        link.publish("fleet/status", str(number).encode(), retain=True)
        time.sleep(max(0.0, started + seconds * (number + 1) / count - time.monotonic()))
    assert link.flush(5)
    link.close()


def retained(address: BrokerAddress) -> bytes:
    link = Link(address, "reader")
    link.subscribe("fleet/status")
    link.open(5)
    event = link.receive(5)
    while not isinstance(event, Message):
        assert event is not None
        event = link.receive(5)
    link.close()
    return event.payload


def test_shipped_configuration_saves_at_most_48_times_a_day() -> None:
    settings = shipped()
    assert settings["persistence"] == "true"
    assert 24 * 3600 / int(settings["autosave_interval"]) <= 48


def test_stopped_broker_saves_its_retained_messages() -> None:
    with saving_broker() as (broker, database):
        publish(broker.address, 3, 0.1)
        assert not database.exists()
        broker.stop()
        assert database.exists()
        broker.start()
        assert retained(broker.address) == b"2"


@pytest.mark.slow(8)
def test_busy_broker_saves_no_more_often_than_its_interval() -> None:
    """2,000 changes in 7 seconds, where it saves every three."""
    interval = int(shipped()["autosave_interval"]) // FASTER
    seen = set()
    with saving_broker(autosave_interval=str(interval)) as (broker, database):
        seconds = 2 * interval + 1.0
        for _ in range(10):
            publish(broker.address, 200, seconds / 10)
            if database.exists():
                seen.add(database.stat().st_mtime_ns)
        broker.kill()
    assert 1 <= len(seen) <= 3
