# SPDX-License-Identifier: Apache-2.0
"""Several brokers as one port: devices are spoken to where they are, and everybody everywhere."""

from __future__ import annotations

import pytest
from fakes import Counted, FakeClock, FakePort

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


def where(ports: list[FakePort], topic: str) -> list[int]:
    """How often each broker was told something on a topic."""
    return [len(port.payloads(topic)) for port in ports]


def hear(brokers: SeveralBrokers) -> list[bytes]:
    found = []
    while (event := brokers.receive(0)) is not None:
        assert isinstance(event, Message)
        found.append(event.payload)
    return found


def test_everybody_is_told_at_each_broker(brokers: SeveralBrokers, ports: list[FakePort]) -> None:
    assert brokers.publish(TOPICS.round, b"x", retain=True)
    assert where(ports, TOPICS.round) == [1, 1]
    ports[1].connected = False
    assert not brokers.connected
    assert not brokers.publish(TOPICS.round, b"x", retain=True)
    assert where(ports, TOPICS.round) == [2, 1]


def test_a_device_is_told_where_it_was_heard_last(brokers: SeveralBrokers, ports: list[FakePort]) -> None:
    brokers.publish(ACK, b"nobody knows where")
    assert where(ports, ACK) == [1, 1]
    ports[1].deliver(STATUS, b"here")
    ports[0].deliver(routes.STATUS.topic(TOPICS, "pi-2"), b"there")
    assert sorted(hear(brokers)) == [b"here", b"there"]
    brokers.publish(ACK, b"known")
    assert where(ports, ACK) == [1, 2]
    assert brokers.broker_of("pi-1") == ports[1].address
    assert brokers.broker_of("pi-3") is None
    ports[0].deliver(STATUS, b"moved")
    hear(brokers)
    brokers.publish(ACK, b"known")
    assert where(ports, ACK) == [2, 2]


def test_what_is_retained_of_a_device_that_has_moved_does_not_count(
    brokers: SeveralBrokers, ports: list[FakePort]
) -> None:
    ports[0].deliver(STATUS, b"of its last process", retained=True)
    hear(brokers)
    assert brokers.broker_of("pi-1") == ports[0].address
    ports[1].deliver(STATUS, b"of this one")
    hear(brokers)
    ports[0].deliver(STATUS, b"of its last process", retained=True)  # after a reconnect
    hear(brokers)
    assert brokers.broker_of("pi-1") == ports[1].address


def test_all_links_are_counted(brokers: SeveralBrokers, ports: list[FakePort]) -> None:
    brokers.meter = meter = Counted()
    brokers.publish(TOPICS.commit, b"12345")
    assert meter.sent == [(TOPICS.commit, 5, 0)] * 2
