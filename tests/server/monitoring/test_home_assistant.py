# SPDX-License-Identifier: Apache-2.0
"""Discovery by Home Assistant: when devices are announced and removed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from home_assistant import profile

from splitee.errors import ConfigError
from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.protocol.topics import Topics
from splitee_lab.local.brokers import RunningBroker
from splitee_server.monitoring.discovery import class_key, discovery
from splitee_server.monitoring.home_assistant import RECORD, HomeAssistant

DEADLINE = 10.0
TOPICS = Topics("barn")


@pytest.mark.parametrize("prefix", ["", "a/#", "+", "/a", "a/", "$SYS"])
def test_prefix_that_is_no_topic_is_refused(prefix: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--home-assistant-prefix .*: expected a topic"):
        HomeAssistant(Link.__new__(Link), TOPICS, tmp_path, wanted=True, prefix=prefix)


@pytest.mark.mosquitto
class TestAtABroker:
    """Messages that a subscriber receives; each test has its own prefix, as the broker is shared."""

    @pytest.fixture
    def prefix(self, request: pytest.FixtureRequest) -> str:
        return f"ha/{request.node.name}"

    @pytest.fixture
    def link(self, mosquitto_broker: RunningBroker, make_link: Callable[..., Link]) -> Link:
        return make_link(mosquitto_broker.address, "server")

    def retained(
        self, broker: RunningBroker, make_link: Callable[..., Link], prefix: str
    ) -> dict[str, dict[str, Any]]:
        """{topic: payload} of the retained messages below `prefix`."""
        fence = f"{prefix}/fence"
        reader = make_link(broker.address, "reader", f"{prefix}/#")
        reader.publish(fence, b"")
        found = {}
        while isinstance(event := reader.receive(DEADLINE), Message) and event.topic != fence:
            found[event.topic] = json.loads(event.payload)
        assert event is not None
        reader.close()
        return found

    def test_device_is_announced_until_discovery_is_switched_off(
        self,
        mosquitto_broker: RunningBroker,
        make_link: Callable[..., Link],
        link: Link,
        prefix: str,
        tmp_path: Path,
    ) -> None:
        on = HomeAssistant(link, TOPICS, tmp_path, wanted=True, prefix=prefix)
        on.start()
        for device in ("pi-1", "pi.2"):
            on.on_admitted(device, profile())
        assert link.flush(DEADLINE)
        topics = [TOPICS.discovery(prefix, device) for device in ("pi-1", "pi.2")]
        found = self.retained(mosquitto_broker, make_link, prefix)
        assert found == {
            topic: discovery(TOPICS, device, profile())
            for topic, device in zip(topics, ("pi-1", "pi.2"), strict=True)
        }
        restarted = HomeAssistant(link, TOPICS, tmp_path, wanted=True, prefix=prefix)
        restarted.start()
        assert link.flush(DEADLINE)
        assert sorted(self.retained(mosquitto_broker, make_link, prefix)) == sorted(topics)
        with (tmp_path / RECORD).open("a") as record:
            record.write(f"{prefix}/device/half-a-li")  # a power cut
        off = HomeAssistant(link, TOPICS, tmp_path, wanted=False, prefix=prefix)
        off.start()
        assert link.flush(DEADLINE)
        assert self.retained(mosquitto_broker, make_link, prefix) == {}
        assert not (tmp_path / RECORD).exists()

    def test_dismissed_device_alone_is_removed_until_it_joins_again(
        self,
        mosquitto_broker: RunningBroker,
        make_link: Callable[..., Link],
        link: Link,
        prefix: str,
        tmp_path: Path,
    ) -> None:
        watcher = HomeAssistant(link, TOPICS, tmp_path, wanted=True, prefix=prefix)
        watcher.start()
        one, two = (TOPICS.discovery(prefix, device) for device in ("pi-1", "pi-2"))
        for device in ("pi-1", "pi-2"):
            watcher.on_admitted(device, profile())
        watcher.on_dismissed("pi-1")
        watcher.on_message(b"online")  # Home Assistant has restarted
        assert link.flush(DEADLINE)
        assert list(self.retained(mosquitto_broker, make_link, prefix)) == [two]
        assert (tmp_path / RECORD).read_text() == f"{two}\n"
        link.publish(one, b"{}", retain=True)  # a server was killed before it had removed it
        (tmp_path / RECORD).write_text(f"{one}\n{two}\n")
        after = HomeAssistant(link, TOPICS, tmp_path, wanted=True, prefix=prefix)
        after.start()
        after.on_dismissed("pi-1")
        assert link.flush(DEADLINE)
        assert list(self.retained(mosquitto_broker, make_link, prefix)) == [two]
        after.on_admitted("pi-1", profile())
        assert link.flush(DEADLINE)
        assert sorted(self.retained(mosquitto_broker, make_link, prefix)) == [one, two]

    def test_device_that_only_predicts_is_announced_and_replaced_once_it_joins(
        self,
        mosquitto_broker: RunningBroker,
        make_link: Callable[..., Link],
        link: Link,
        prefix: str,
        tmp_path: Path,
    ) -> None:
        watcher = HomeAssistant(
            link, TOPICS, tmp_path, wanted=True, prefix=prefix, classes=True, class_names=("a",)
        )
        watcher.start()
        one, two = (TOPICS.discovery(prefix, device) for device in ("pi-1", "pi-2"))
        predicts = discovery(TOPICS, "pi-1", None, class_names=("a",))
        for _ in range(2):
            watcher.on_predicting("pi-1", None)
            watcher.on_predicting("pi-2", profile())
        assert link.flush(DEADLINE)
        found = self.retained(mosquitto_broker, make_link, prefix)
        assert found == {one: predicts, two: discovery(TOPICS, "pi-2", profile(), class_names=("a", "b"))}
        watcher.on_admitted("pi-1", profile())
        watcher.on_predicting("pi-1", None)
        watcher.on_dismissed("pi-2")
        assert link.flush(DEADLINE)
        found = self.retained(mosquitto_broker, make_link, prefix)
        assert found == {one: discovery(TOPICS, "pi-1", profile(), class_names=("a", "b"))}
        off = HomeAssistant(link, TOPICS, tmp_path, wanted=False, prefix=prefix)
        off.start()
        off.on_predicting("pi-1", None)
        assert link.flush(DEADLINE)
        assert self.retained(mosquitto_broker, make_link, prefix) == {}

    def test_new_prefix_removes_announcements_under_the_old_one(
        self,
        mosquitto_broker: RunningBroker,
        make_link: Callable[..., Link],
        link: Link,
        prefix: str,
        tmp_path: Path,
    ) -> None:
        for name in ("one", "two"):
            watcher = HomeAssistant(link, TOPICS, tmp_path, wanted=True, prefix=f"{prefix}/{name}")
            watcher.start()
            watcher.on_admitted("pi-1", profile())
        assert link.flush(DEADLINE)
        found = self.retained(mosquitto_broker, make_link, prefix)
        assert list(found) == [TOPICS.discovery(f"{prefix}/two", "pi-1")]

    def test_device_is_announced_again_after_a_home_assistant_start_or_reconnect(
        self,
        mosquitto_broker: RunningBroker,
        make_link: Callable[..., Link],
        link: Link,
        prefix: str,
        tmp_path: Path,
    ) -> None:
        watcher = HomeAssistant(link, TOPICS, tmp_path, wanted=True, prefix=prefix)
        assert watcher.filters == (f"{prefix}/status",)
        reader = make_link(mosquitto_broker.address, "home-assistant", f"{prefix}/#")

        def received() -> list[str]:
            """Topics received since the last call; a fence message marks the end."""
            fence = f"{prefix}/fence"
            assert link.flush(DEADLINE)
            link.publish(fence, b"")
            topics = []
            while isinstance(event := reader.receive(DEADLINE), Message) and event.topic != fence:
                topics.append(event.topic)
            return topics

        topic = TOPICS.discovery(prefix, "pi-1")
        watcher.on_admitted("pi-1", profile())
        watcher.on_admitted("pi-1", profile())
        assert received() == [topic], "once, as long as it stays the same"
        watcher.on_admitted("pi-1", profile(machine="a Pi that was profiled"))
        assert received() == [topic]
        watcher.on_message(b"offline")
        assert received() == []
        watcher.on_message(b"online")
        assert received() == [topic]
        watcher.on_reconnected()
        assert received() == [topic]

    def test_class_sensors_are_removed_with_their_class_or_when_switched_off(
        self,
        mosquitto_broker: RunningBroker,
        make_link: Callable[..., Link],
        link: Link,
        prefix: str,
        tmp_path: Path,
    ) -> None:
        topic = TOPICS.discovery(prefix, "pi-1")

        def announced(*names: str, classes: bool) -> dict[str, str]:
            """{key: name} of the binary sensors that a server announces; "": removed."""
            watcher = HomeAssistant(link, TOPICS, tmp_path, wanted=True, prefix=prefix, classes=classes)
            watcher.start()
            watcher.on_admitted("pi-1", profile(class_names=names))
            assert link.flush(DEADLINE)
            components = self.retained(mosquitto_broker, make_link, prefix)[topic]["components"]
            found = {key: field for key, field in components.items() if field["platform"] == "binary_sensor"}
            assert all(set(field) == {"platform"} for field in found.values() if "name" not in field)
            return {key: field.get("name", "") for key, field in found.items()}

        cat, dog, fox = (class_key(name) for name in ("cat", "dog", "fox"))
        assert announced("cat", "dog", classes=False) == {}
        assert announced("cat", "dog", classes=True) == {cat: "cat", dog: "dog"}
        assert announced("dog", "fox", classes=True) == {cat: "", dog: "dog", fox: "fox"}
        with (tmp_path / RECORD).open("a") as record:
            record.write(f"{topic}\t{cat}\t{dog}\t{fox}\tclass_0123")  # a power cut
        assert announced("dog", "fox", classes=False) == {cat: "", dog: "", fox: ""}
        assert announced("cat", "fox", classes=True) == {cat: "cat", dog: "", fox: "fox"}
