# SPDX-License-Identifier: Apache-2.0
"""Whom a server listens to after a flood, at real brokers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fakes import FakeClock

from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.protocol import routes
from splitee.protocol.topics import Topics
from splitee_lab.local.brokers import RunningBroker
from splitee_server.members.device_subscriptions import MEMBERS_ONLY, DeviceSubscriptions


@pytest.mark.parametrize("members", [[], ["pi-1"]])
def test_after_a_flood_only_members_are_heard_for_a_while(
    broker: RunningBroker, make_link: Callable[..., Link], base: str, members: list[str]
) -> None:
    """A device may flood the server before any other has joined."""
    topics, clock = Topics(base.rpartition("/")[2].replace("_", "-")), FakeClock()
    devices = make_link(broker.address, "devices")
    server = make_link(broker.address, "server", routes.SYNC.topic(topics), topics.server_claim)
    subscriptions = DeviceSubscriptions(server, topics, [routes.SYNC], lambda: members, clock)

    def heard() -> list[str]:
        """The devices that the server hears, of three that each publish a message."""
        server.publish(topics.server_status, b"")  # the broker handles its earlier packets before this one
        server.flush(10)
        for device in ("pi-1", "pi-2", "evil"):
            devices.publish(routes.SYNC.topic(topics, device), b"")
        devices.publish(topics.server_claim, b"")  # the last one, which is heard in any case
        found = []
        while isinstance(event := server.receive(10), Message) and event.topic != topics.server_claim:
            found.append(event.topic.split("/")[-2])
        assert event is not None
        return found

    assert heard() == ["pi-1", "pi-2", "evil"]
    subscriptions.shut_out("evil")
    assert heard() == members
    clock.advance(MEMBERS_ONLY + 1)
    subscriptions.tick()
    assert heard() == ["pi-1", "pi-2", "evil"]
