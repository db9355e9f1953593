# SPDX-License-Identifier: Apache-2.0
"""Several brokers as one port: messages to a device go to its broker, messages to all to each broker."""

from __future__ import annotations

import pytest
from fakes import FakeClock, FakePort, RecordingMeter

from splitee.mqtt.address import BrokerAddress
from splitee.mqtt.events import Message
from splitee.protocol import routes
from splitee.protocol.topics import Topics
from splitee_server.ranks.brokers import SeveralBrokers

TOPICS = Topics("fleet")
STATUS = routes.STATUS.topic(TOPICS, "pi-1")
ACK = routes.ACK.topic(TOPICS, "pi-1")


@pytest.fixture
def ports() -> list[FakePort]:
    found = [FakePort(FakeClock()) for _ in range(2)]
    for number, port in enumerate(found):
        port.address = BrokerAddress(f"broker-{number}", 1883)
    return found


@pytest.fixture
def brokers(ports: list[FakePort]) -> SeveralBrokers:
    several = SeveralBrokers(ports, TOPICS)  # type: ignore[arg-type]
    several.subscribe(TOPICS.all_devices("status"))
    return several


def messages_at_each(ports: list[FakePort], topic: str) -> list[int]:
    """The number of messages on a topic at each broker."""
    return [len(port.payloads(topic)) for port in ports]


def receive_all(brokers: SeveralBrokers) -> list[bytes]:
    found = []
    while (event := brokers.receive(0)) is not None:
        assert isinstance(event, Message)
        found.append(event.payload)
    return found


def test_message_to_all_devices_is_published_at_each_broker(
    brokers: SeveralBrokers, ports: list[FakePort]
) -> None:
    assert brokers.publish(TOPICS.round, b"x", retain=True)
    assert messages_at_each(ports, TOPICS.round) == [1, 1]
    ports[1].connected = False
    assert not brokers.connected
    assert not brokers.publish(TOPICS.round, b"x", retain=True)
    assert messages_at_each(ports, TOPICS.round) == [2, 1]


def test_message_to_a_device_is_published_at_its_latest_broker(
    brokers: SeveralBrokers, ports: list[FakePort]
) -> None:
    brokers.publish(ACK, b"nobody knows where")
    assert messages_at_each(ports, ACK) == [1, 1]
    ports[1].deliver(STATUS, b"here")
    ports[0].deliver(routes.STATUS.topic(TOPICS, "pi-2"), b"there")
    assert sorted(receive_all(brokers)) == [b"here", b"there"]
    brokers.publish(ACK, b"known")
    assert messages_at_each(ports, ACK) == [1, 2]
    assert brokers.broker_of("pi-1") == ports[1].address
    assert brokers.broker_of("pi-3") is None
    ports[0].deliver(STATUS, b"moved")
    receive_all(brokers)
    brokers.publish(ACK, b"known")
    assert messages_at_each(ports, ACK) == [2, 2]


def test_retained_status_at_the_old_broker_of_a_moved_device_is_ignored(
    brokers: SeveralBrokers, ports: list[FakePort]
) -> None:
    ports[0].deliver(STATUS, b"of its last process", retained=True)
    receive_all(brokers)
    assert brokers.broker_of("pi-1") == ports[0].address
    ports[1].deliver(STATUS, b"of this one")
    receive_all(brokers)
    ports[0].deliver(STATUS, b"of its last process", retained=True)  # after a reconnect
    receive_all(brokers)
    assert brokers.broker_of("pi-1") == ports[1].address


def test_meter_counts_the_messages_of_all_links(brokers: SeveralBrokers, ports: list[FakePort]) -> None:
    brokers.meter = meter = RecordingMeter()
    brokers.publish(TOPICS.commit, b"12345")
    assert meter.sent == [(TOPICS.commit, 5, 0)] * 2
