# SPDX-License-Identifier: Apache-2.0
"""Topics outside of the fleet that `splitee broker init --device-reads` lets devices read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from splitee.errors import ConfigError
from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.protocol.topics import Topics

from .conftest import DEADLINE, FLEET, HOST, Fleet, run_broker

Connect = Callable[..., Link]
Messages = Callable[[Link, int], list[Message]]
MOTION, OWN_DOOR, ROOMS = "zigbee2mqtt/motion/occupancy", "doors/%u/open", "rooms/+/light/#"


def init(directory: Path, *flags: str) -> Exception | None:
    error = run_broker("init", "--fleet", FLEET, "--name", HOST, *flags, directory=directory).exception
    assert error is None or isinstance(error, Exception)
    return error


@pytest.mark.mosquitto
def test_device_reads_the_given_topics_and_home_assistant_writes_them(
    fleet: Fleet, connect: Connect, messages: Messages
) -> None:
    given = [flag for topic in (MOTION, OWN_DOOR, ROOMS) for flag in ("--device-reads", topic)]
    state = ("--port", str(fleet.address.port), "--broker-state", str(fleet.directory.parent / "state"))
    assert init(fleet.directory, *state, *given) is None
    fleet.device("pi-1"), fleet.device("pi-2")
    assert (
        run_broker("revoke-device", "pi-2", directory=fleet.directory).exception is None
    )  # writes the access list anew
    fleet.reload()
    run = Topics(FLEET).run
    device = connect(fleet.device("pi-1"), "zigbee2mqtt/#", "doors/#", "rooms/#", run)
    server, assistant = connect(fleet.directory / "server"), connect(fleet.directory / "homeassistant")
    theirs = (MOTION, "doors/pi-1/open", "rooms/hall/light/1")
    others = ("zigbee2mqtt/motion", "doors/pi-1", "rooms/hall/heating")
    for topic in (*theirs, "doors/pi-3/open"):
        assistant.publish(topic, b"true")
    assert assistant.flush(DEADLINE)
    assert assistant.refused == 0
    for topic in others:
        assistant.publish(topic, b"true")
        server.publish(topic, b"true")
    for topic in (*theirs, *others):
        device.publish(topic, b"forged")
    for link, refused in ((assistant, len(others)), (server, len(others)), (device, 6)):
        assert link.flush(DEADLINE)
        assert link.refused == refused
    server.publish(run, b"fence")
    heard = [(message.topic, message.payload) for message in messages(device, len(theirs) + 1)]
    assert heard == [*((topic, b"true") for topic in theirs), (run, b"fence")]


def test_device_reads_topics_are_kept_until_others_are_given(tmp_path: Path) -> None:
    def lines() -> list[str]:
        text = (tmp_path / "broker" / "acl").read_text()
        return [line for line in text.splitlines() if "zigbee2mqtt" in line or "doors" in line]

    assert init(tmp_path, "--device-reads", MOTION) is None
    assert init(tmp_path, "--port", "8885") is None
    assert lines() == [f"pattern read {MOTION}", f"topic write {MOTION}"]
    assert init(tmp_path, "--device-reads", OWN_DOOR) is None
    assert lines() == [f"pattern read {OWN_DOOR}", "topic write doors/+/open"]
    assert init(tmp_path, "--device-reads", "") is None
    assert lines() == []


@pytest.mark.parametrize(
    "topic",
    [
        "#", "+/motion", "/motion", "$SYS/#", "$share/a/b", "splitee", "splitee/v1/barn/devices/pi-2/infer",
        "%u/#", "a/#/b", "a/b#", "a/+b", "a/%c", "a/b%u", "a\nuser server\ntopic readwrite #", " a", "a ",
        "a/" + "b" * 200,
    ],
)  # fmt: skip
def test_invalid_or_too_wide_device_reads_topic_is_refused(tmp_path: Path, topic: str) -> None:
    error = init(tmp_path, "--device-reads", topic)
    assert isinstance(error, ConfigError)
    assert "--device-reads" in str(error) and "\n" not in str(error)
    assert not (tmp_path / "broker").exists()


def test_more_than_100_device_reads_topics_are_refused(tmp_path: Path) -> None:
    flags = [flag for number in range(101) for flag in ("--device-reads", f"sensors/{number}")]
    assert "expected at most 100 topics, got 101" in str(init(tmp_path, *flags))
