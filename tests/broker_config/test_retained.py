# SPDX-License-Identifier: Apache-2.0
"""Retained messages of a revoked device, on a real broker."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.protocol import routes
from splitee.protocol.topics import Topics

from .conftest import DEADLINE, FLEET, Fleet, run_broker

pytestmark = pytest.mark.mosquitto

Connect = Callable[..., Link]
TOPICS = Topics(FLEET)
FENCE = TOPICS.server_claim


def retained(fleet: Fleet, connect: Connect) -> set[str]:
    """The topics on which the broker retains a message."""
    link = connect(fleet.directory / "server", f"{TOPICS.base}/#", client_id="looks")
    link.publish(FENCE, b"x")
    found = set()
    while True:
        event = link.receive(DEADLINE)
        assert isinstance(event, Message)
        if event.topic == FENCE:
            link.close()
            return found
        if event.retained:
            found.add(event.topic)


def test_revocation_clears_the_retained_topics_of_that_device_only(fleet: Fleet, connect: Connect) -> None:
    server = connect(fleet.directory / "server")
    lost, other = connect(fleet.device("lost")), connect(fleet.device("other"))
    own = [route for route in routes.ROUTES if route.of_device]
    for route in own:  # a hostile device retains whatever it may write
        sender = lost if route.sender == "device" else server
        sender.publish(route.topic(TOPICS, "lost"), b"x", retain=True)
    lost.publish(TOPICS.device("lost", "echo"), b"x", retain=True)
    other.publish(TOPICS.device("other", "status"), b"x", retain=True)
    server.publish(TOPICS.run, b"x", retain=True)
    assert all(link.flush(DEADLINE) for link in (server, lost, other))
    theirs = {TOPICS.device("other", "status"), TOPICS.run}
    of_lost = {route.topic(TOPICS, "lost") for route in own} | {TOPICS.device("lost", "echo")}
    assert retained(fleet, connect) == of_lost | theirs

    revoked = run_broker("revoke-device", "lost", directory=fleet.directory)
    assert revoked.exception is None
    assert f"{len(of_lost)} retained topics of lost are cleared" in revoked.output
    assert retained(fleet, connect) == theirs

    lost.publish(TOPICS.device("lost", "status"), b"x", retain=True)  # the broker has not reloaded yet
    assert lost.flush(DEADLINE)
    again = run_broker("revoke-device", "lost", directory=fleet.directory)
    assert "1 retained topics of lost are cleared" in again.output
    assert retained(fleet, connect) == theirs
