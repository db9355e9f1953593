"""What a device says of itself, as the broker retains it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.protocol.fleet import DeviceStatus
from splitee.protocol.topics import Topics
from splitee_device.agent import session
from splitee_device.machine.hardware import Fact
from splitee_lab.local.brokers import RunningBroker

DEADLINE = 10.0


@pytest.mark.mosquitto
@pytest.mark.parametrize("degrees", [61.335, None])
def test_the_status_has_the_temperature_where_there_is_a_sensor(
    mosquitto_broker: RunningBroker,
    make_link: Callable[..., Link],
    monkeypatch: pytest.MonkeyPatch,
    degrees: float | None,
) -> None:
    monkeypatch.setattr(session, "temperature", lambda: Fact(degrees, "a sensor that test machines lack"))
    topics = Topics(f"status-{degrees}")
    reader = make_link(mosquitto_broker.address, "reads-status", topics.all_devices("status"))
    link = make_link(mosquitto_broker.address, "says-status")
    session.Session(link, topics, "pi-1", instance=1).say("waiting", 2)
    event = reader.receive(DEADLINE)
    assert isinstance(event, Message)
    status = DeviceStatus.decode(event.payload)
    assert (status.doing, status.round, status.temperature) == ("waiting", 2, degrees)
