# SPDX-License-Identifier: Apache-2.0
"""`splitee server --codec auto`: devices choose, publish what they chose, and stick to it when restarted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fleets import Fleet

from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.protocol.fleet import Profile
from splitee.protocol.topics import Topics
from splitee_device.profiler.auto_codec import CANDIDATES
from splitee_lab.local.brokers import RunningBroker


def test_devices_choose_a_codec_once_and_publish_it(
    mosquitto_broker: RunningBroker, make_link: Callable[..., Link], tmp_path: Path
) -> None:
    topics = Topics("auto-codec")
    with Fleet(str(mosquitto_broker.address), "auto-codec", tmp_path) as fleet:
        fleet.server("--codec", "auto", devices=2, rounds=2)
        fleet.device("pi-1", 1, shard="1/2")
        fleet.device("pi-2", 2, shard="2/2")
        link = make_link(mosquitto_broker.address, "listener", topics.all_devices("profile"), topics.commit)
        profiles: dict[str, Profile] = {}
        while (event := link.receive(120)) is not None and event.topic != topics.commit:  # type: ignore[union-attr]
            if isinstance(event, Message):
                profiles[event.topic.split("/")[-2]] = Profile.decode(event.payload)
        fleet.processes["pi-1"].kill()
        fleet.processes["pi-1"].wait()
        fleet.device("pi-1", 1, shard="1/2")
        assert fleet.wait() == [0, 0, 0], fleet.log("pi-1")
    for device in ("pi-1", "pi-2"):
        assert profiles[device].codec in CANDIDATES
        assert fleet.log(device).count(f"codec {profiles[device].codec} at cut") == 1
    assert fleet.report()["codec"] == "auto"
