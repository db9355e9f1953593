# SPDX-License-Identifier: Apache-2.0
"""Access of each identity to topics, on a real Mosquitto with the shipped production configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.protocol import routes
from splitee.protocol.rollouts import Install
from splitee.protocol.topics import Topics

from .conftest import Fleet

pytestmark = pytest.mark.mosquitto

Connect = Callable[..., Link]
Messages = Callable[[Link, int], list[Message]]
FLEET = "barn"
DEADLINE = 10.0
TOPICS = Topics(FLEET)
WRITES = tuple(route.leaf for route in routes.ROUTES if route.sender == "device")
OF_DEVICE = tuple(route.leaf for route in routes.ROUTES if route.sender == "server" and route.of_device)
INBOX = tuple(leaf for leaf in OF_DEVICE if leaf.startswith("inbox/"))
BROADCASTS = tuple(
    route.topic(TOPICS) for route in routes.ROUTES if "device" in route.readers and not route.of_device
)
FOR_VIEWERS = tuple(
    route.topic(TOPICS) for route in routes.ROUTES if route.readers == ("viewer",) and not route.of_device
)


def received(link: Link, fence: str) -> list[str]:
    """The topics of the messages before that on `fence`, a topic that the link may read."""
    topics: list[str] = []
    while True:
        event = link.receive(DEADLINE)
        assert isinstance(event, Message), event
        if event.topic == fence and event.payload == b"fence":
            return topics
        topics.append(event.topic)


def test_device_writes_its_topics_and_reads_its_inbox_and_broadcasts(
    fleet: Fleet, connect: Connect, messages: Messages
) -> None:
    own = fleet.device("pi-1")
    server = connect(fleet.directory / "server", *(TOPICS.all_devices(leaf) for leaf in WRITES))
    device = connect(own, *BROADCASTS, TOPICS.device("pi-1", "inbox/#"), TOPICS.device("pi-1", "status"))
    for leaf in WRITES:
        device.publish(TOPICS.device("pi-1", leaf), b"x")
    for topic in (*BROADCASTS, *(TOPICS.device("pi-1", leaf) for leaf in INBOX)):
        server.publish(topic, b"x")
    assert server.flush(DEADLINE)
    assert device.flush(DEADLINE)
    assert (server.refused, device.refused) == (0, 0)
    heard = sorted(message.topic for message in messages(server, len(WRITES)))
    assert heard == sorted(TOPICS.device("pi-1", leaf) for leaf in WRITES)
    expected = {*BROADCASTS, *(TOPICS.device("pi-1", leaf) for leaf in (*INBOX, "status"))}
    assert {message.topic for message in messages(device, len(expected))} == expected


FOREIGN = [
    *(TOPICS.device("pi-2", leaf) for leaf in (*WRITES, "inbox/plan", "inbox/answer")),
    *(TOPICS.device("pi-1", leaf) for leaf in ("inbox/plan", "inbox/ack", "else")),
    *BROADCASTS,
    *FOR_VIEWERS,
    TOPICS.server_claim,
    routes.DISMISS.topic(TOPICS),
    routes.DISMISSED.topic(TOPICS),
    TOPICS.check("0a1b2c3d"),
    f"{TOPICS.base}/else",
    "splitee/v1/default/devices/pi-1/status",
    "splitee/v2/barn/devices/pi-1/status",
    "homeassistant/device/pi-1/config",
    "$SYS/broker/uptime",
]


def test_device_publishing_on_foreign_topics_is_refused_and_counted(fleet: Fleet, connect: Connect) -> None:
    everything = connect(fleet.directory / "server", f"{TOPICS.base}/#")
    device = connect(fleet.device("pi-1"))
    for topic in FOREIGN:
        device.publish(topic, b"x", retain=True)
    assert device.flush(DEADLINE)
    assert device.refused == len(FOREIGN)
    everything.publish(TOPICS.server_claim, b"fence")
    arrived = received(everything, TOPICS.server_claim)
    assert not set(arrived) & set(FOREIGN)


@pytest.mark.parametrize("reader", ["pi-1", "viewer", "homeassistant"])
def test_identity_receives_only_the_topics_that_it_may_read(
    fleet: Fleet, connect: Connect, reader: str
) -> None:
    """Mosquitto grants such a subscription, and then delivers nothing on it."""
    folder = fleet.device(reader) if reader == "pi-1" else fleet.directory / reader
    server = connect(fleet.directory / "server")
    other = connect(fleet.device("pi-2"))
    spy = connect(folder, "#", "$SYS/#", f"{TOPICS.base}/devices/#", f"{TOPICS.base}/server/#")
    for leaf in WRITES:
        other.publish(TOPICS.device("pi-2", leaf), b"x", retain=leaf == "status")
    of_device = (TOPICS.device("pi-2", leaf) for leaf in OF_DEVICE)
    for topic in (*of_device, *FOR_VIEWERS, TOPICS.server_claim):
        server.publish(topic, b"x")
    assert server.flush(DEADLINE)
    assert other.flush(DEADLINE)
    server.publish(TOPICS.run, b"fence")
    seen = set(received(spy, TOPICS.run)) - set(BROADCASTS) - {TOPICS.device("pi-1", leaf) for leaf in INBOX}
    watched = [route.leaf for route in routes.ROUTES if route.of_device and reader in route.readers]
    assert {TOPICS.device("pi-2", leaf) for leaf in watched} <= seen
    seen = {
        topic for topic in seen if (found := TOPICS.parse_device(topic)) is None or found[1] not in watched
    }
    of_fleet = set(FOR_VIEWERS) if reader == "viewer" else set()
    assert seen - {TOPICS.device("pi-1", "status")} == of_fleet


@pytest.mark.parametrize("identity", ["viewer", "health", "homeassistant"])
def test_watching_identity_may_not_publish_as_device_or_server(
    fleet: Fleet, connect: Connect, identity: str
) -> None:
    folder = fleet.directory / identity
    if identity == "health":
        folder = health_files(fleet.directory / "broker")
    link = connect(folder, client_id=identity)
    own = [TOPICS.device(identity, leaf) for leaf in WRITES]
    for topic in (*own, *FOREIGN):
        link.publish(topic, b"x")
    assert link.flush(DEADLINE)
    assert link.refused == len(own) + len(FOREIGN)


def test_trigger_of_a_device_is_accepted_from_home_assistant_only(
    fleet: Fleet, connect: Connect, messages: Messages
) -> None:
    trigger = TOPICS.trigger("pi-1")
    device = connect(fleet.device("pi-1"), trigger)
    for folder in (fleet.device("pi-2"), fleet.device("pi-1"), fleet.directory / "viewer"):
        link = connect(folder, client_id="forges")
        link.publish(trigger, b"forged")
        assert link.flush(DEADLINE)
        assert link.refused == 1
    assistant = connect(fleet.directory / "homeassistant")
    assistant.publish(trigger, b"ON")
    assert assistant.flush(DEADLINE)
    assert assistant.refused == 0
    assert [message.payload for message in messages(device, 1)] == [b"ON"]


def health_files(broker: Path) -> Path:
    """The healthcheck's identity under the names that the tests' links look for."""
    folder = broker.parent / "health"
    folder.mkdir(exist_ok=True)
    for source, name in (("ca.crt", "ca.crt"), ("health.crt", "client.crt"), ("health.key", "client.key")):
        (folder / name).write_bytes((broker / source).read_bytes())
    return folder


def test_discovery_is_written_for_own_fleet_and_read_by_home_assistant_only(
    fleet: Fleet, connect: Connect, messages: Messages
) -> None:
    server = connect(fleet.directory / "server", "homeassistant/status")
    assistant = connect(fleet.directory / "homeassistant", "homeassistant/#", TOPICS.server_status)
    others = [
        connect(fleet.device("pi-1"), "homeassistant/#", TOPICS.run),
        connect(fleet.directory / "viewer", "#"),
    ]
    own = TOPICS.discovery("homeassistant", "pi.1")
    server.publish(own, b"x")
    assistant.publish("homeassistant/status", b"online")
    assert [message.topic for message in messages(server, 1)] == ["homeassistant/status"]
    assert {message.topic for message in messages(assistant, 2)} == {own, "homeassistant/status"}
    elsewhere = [
        Topics("other").discovery("homeassistant", "pi-1"),
        "homeassistant/light/splitee_barn/pi-1/config",
        "homeassistant/device/pi-1/config",
        "homeassistant/status",
    ]
    for topic in elsewhere:
        server.publish(topic, b"x")
    assert server.flush(DEADLINE)
    assert server.refused == len(elsewhere)
    server.publish(TOPICS.run, b"fence")
    for other in others:
        assert not [topic for topic in received(other, TOPICS.run) if topic.startswith("homeassistant")]


def test_home_assistant_alone_may_publish_install_but_no_offers_or_states(
    fleet: Fleet, connect: Connect, messages: Messages
) -> None:
    click = Install(kind="model").encode()
    server = connect(fleet.directory / "server", routes.INSTALL.topic(TOPICS), TOPICS.run)
    others = {
        "pi-1": fleet.device("pi-1"),
        "viewer": fleet.directory / "viewer",
        "health": health_files(fleet.directory / "broker"),
    }
    for name, folder in others.items():
        link = connect(folder, client_id=f"install-{name}")
        for device in ("pi-1", "pi-2"):
            link.publish(routes.INSTALL.topic(TOPICS, device), click)
        assert link.flush(DEADLINE)
        assert link.refused == 2, name
    assistant = connect(fleet.directory / "homeassistant")
    assistant.publish(routes.INSTALL.topic(TOPICS, "homeassistant"), click)
    for leaf in (routes.DEVICE_UPDATE.leaf, routes.MODEL_OFFER.leaf, routes.PREDICTED_STATE.leaf):
        assistant.publish(TOPICS.device("pi-1", leaf), click, retain=True)
    assert assistant.flush(DEADLINE)
    assert assistant.refused == 4
    assistant.publish(routes.INSTALL.topic(TOPICS, "pi-1"), click)
    (heard,) = messages(server, 1)
    assert (heard.topic, heard.payload) == (routes.INSTALL.topic(TOPICS, "pi-1"), click)


def test_server_reads_the_sys_topics_of_the_broker(fleet: Fleet, connect: Connect) -> None:
    server = connect(fleet.directory / "server", "$SYS/broker/version")
    event = server.receive(DEADLINE)
    assert isinstance(event, Message)
    assert event.payload.startswith(b"mosquitto version 2.")


def test_client_id_takeover_delivers_none_of_the_victims_messages(fleet: Fleet, connect: Connect) -> None:
    """A stolen device can disconnect another by its client id; messages to the other stay unread."""
    victim = connect(fleet.device("pi-2"), TOPICS.device("pi-2", "inbox/#"), client_id="shared")
    thief = connect(fleet.device("pi-1"), TOPICS.device("pi-2", "inbox/#"), TOPICS.run, client_id="shared")
    victim.close()
    server = connect(fleet.directory / "server")
    server.publish(TOPICS.device("pi-2", "inbox/plan"), b"x")
    server.publish(TOPICS.run, b"fence")
    assert TOPICS.device("pi-2", "inbox/plan") not in received(thief, TOPICS.run)
