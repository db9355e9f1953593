# SPDX-License-Identifier: Apache-2.0
"""Home Assistant's discovery: what is announced, what its templates make of the fleet's own messages."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from splitee.errors import ConfigError
from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.protocol.accuracies import ClassRecall
from splitee.protocol.fields import Doing
from splitee.protocol.fleet import Capability, DeviceFigures, DeviceMetrics, DeviceStatus, Profile
from splitee.protocol.inference import PredictionReport
from splitee.protocol.topics import Topics
from splitee_lab.local.brokers import RunningBroker
from splitee_server.monitoring.home_assistant import RECORD, HomeAssistant, discovery

DEADLINE = 10.0
TOPICS = Topics("barn")
# homeassistant/components/mqtt/discovery.py: TOPIC_MATCHER, behind the prefix
DISCOVERY_TOPIC = re.compile(r"device/(?:[a-zA-Z0-9_-]+/)?[a-zA-Z0-9_-]+/config")
# What DEVICE_DISCOVERY_SCHEMA takes at the root; one other key, and all of the device is refused.
ROOT = {
    "device",
    "origin",
    "components",
    "availability",
    "availability_mode",
    "state_topic",
    "qos",
    "encoding",
}


def profile(cut: int = 2, machine: str | None = None) -> Profile:
    capability = None
    if machine is not None:
        capability = Capability(
            network="resnet18", batch_size=32, codec="fp16", machine=machine, cores=4, threads=4
        )
    return Profile(
        protocol=1,
        instance=1,
        version="0.1.0",
        cut=cut,
        class_names=("a", "b"),
        train_samples=8,
        held_out_samples=2,
        capability=capability,
    )


def shown(payload: dict[str, Any], sensor: str, message: bytes) -> str:
    """What Home Assistant shows of `sensor` after `message` on its topic."""
    template = payload["components"][sensor]["value_template"]
    return rendered(template, message)


def rendered(template: str, message: bytes) -> str:
    return (
        ImmutableSandboxedEnvironment().from_string(template).render(value_json=json.loads(message)).strip()
    )


def test_the_payload_is_one_that_home_assistant_takes() -> None:
    payload = discovery(TOPICS, "pi-1", profile(machine="Raspberry Pi 4 Model B"))
    assert set(payload) <= ROOT
    assert payload["device"]["model"] == "Raspberry Pi 4 Model B"
    assert payload["origin"]["name"] == "splitee"
    assert set(payload["components"]) == {"status", "round", "accuracy", "temperature", "prediction"}
    for sensor in payload["components"].values():
        assert sensor["platform"] == "sensor"
        assert sensor["name"] and sensor["unique_id"] and sensor["state_topic"]
        assert ("options" in sensor) == (sensor.get("device_class") == "enum")
        assert sensor.get("device_class") != "enum" or not {"state_class", "unit_of_measurement"} & set(
            sensor
        )
        assert "state_class" not in sensor or "unit_of_measurement" in sensor
    assert "model" not in discovery(TOPICS, "pi-1", profile())["device"]


def test_no_two_devices_of_any_fleets_share_a_topic_or_an_identity() -> None:
    names = ("pi-1", "pi_1", "pi.1", "pi_2e1", "pi", "1", "a_5f", "a__", "a._")
    topics, identities = set(), set()
    for fleet in names:
        for device in names:
            topic = Topics(fleet).discovery("home/assistant", device)
            assert DISCOVERY_TOPIC.fullmatch(topic.removeprefix("home/assistant/")), topic
            topics.add(topic)
            payload = discovery(Topics(fleet), device, profile())
            identities.add(payload["device"]["identifiers"][0])
            identities |= {sensor["unique_id"] for sensor in payload["components"].values()}
    assert len(topics) == len(names) ** 2
    assert len(identities) == len(names) ** 2 * 6


def test_what_is_shown_of_a_device_that_trains_and_of_one_that_is_gone() -> None:
    payload = discovery(TOPICS, "pi-1", profile())
    states = {*get_args(Doing), "offline"}
    assert set(payload["components"]["status"]["options"]) == states, "Home Assistant refuses any other"
    online = DeviceStatus(state="online", instance=1, doing="training", round=3, temperature=61.3).encode()
    fresh = DeviceStatus(state="online", instance=1).encode()
    gone = DeviceStatus(state="offline", instance=1).encode()
    assert [shown(payload, "status", message) for message in (online, fresh, gone)] == [
        "training", "starting", "offline",
    ]  # fmt: skip
    assert [shown(payload, "round", message) for message in (online, fresh)] == ["3", "0"]
    assert [shown(payload, "temperature", message) for message in (online, fresh)] == ["61.3", "None"]
    for sensor in ("round", "temperature"):
        (availability,) = payload["components"][sensor]["availability"]
        assert availability["topic"] == payload["components"][sensor]["state_topic"]
        said = [rendered(availability["value_template"], message) for message in (online, gone)]
        assert said == ["online", "offline"], "Home Assistant's own words for it"


def test_accuracy_is_the_exits_in_percent() -> None:
    def measured(share: float | None, weakest: ClassRecall | None = None, images: int = 31) -> bytes:
        figures = DeviceMetrics(
            cut=1,
            stage="s",
            train_samples=1,
            held_out_samples=images,
            exit_accuracy=share,
            weakest_class=weakest,
        )
        return DeviceFigures(run="run-a", round=1, figures=figures).encode()

    payload = discovery(TOPICS, "pi", profile())
    assert payload["components"]["accuracy"]["state_topic"] == TOPICS.device("pi", "metrics")
    assert shown(payload, "accuracy", measured(0.8125)) == "81.2"
    assert shown(payload, "accuracy", measured(0.0)) == "0.0"
    assert shown(payload, "accuracy", measured(None)) == "None"
    attributes = payload["components"]["accuracy"]["json_attributes_template"]
    weakest = ClassRecall("glass", 5, 0.4)
    assert json.loads(rendered(attributes, measured(0.8, weakest))) == {
        "images": 31,
        "weakest_class": {"name": "glass", "images": 5, "recall": 0.4},
    }
    assert json.loads(rendered(attributes, measured(None, images=0))) == {"images": 0, "weakest_class": None}


def test_the_last_prediction_is_its_label_with_the_rest_as_attributes() -> None:
    payload = discovery(TOPICS, "pi-1", profile())
    report = PredictionReport(
        picture="x.jpg", label="snail", probability=0.9, entropy=0.1, source="exit", milliseconds=3, time=1.0
    )
    assert shown(payload, "prediction", report.encode()) == "snail"
    sensor = payload["components"]["prediction"]
    assert sensor["json_attributes_topic"] == sensor["state_topic"] == TOPICS.device("pi-1", "predictions")


@pytest.mark.parametrize("prefix", ["", "a/#", "+", "/a", "a/", "$SYS"])
def test_a_prefix_that_is_no_topic(prefix: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--home-assistant-prefix .*: expected a topic"):
        HomeAssistant(Link.__new__(Link), TOPICS, tmp_path, wanted=True, prefix=prefix)


@pytest.mark.mosquitto
class TestAtABroker:
    """What a subscriber sees; each test has a prefix of its own, for the broker is shared."""

    @pytest.fixture
    def prefix(self, request: pytest.FixtureRequest) -> str:
        return f"ha/{request.node.name}"

    @pytest.fixture
    def link(self, mosquitto_broker: RunningBroker, make_link: Callable[..., Link]) -> Link:
        return make_link(mosquitto_broker.address, "server")

    def retained(
        self, broker: RunningBroker, make_link: Callable[..., Link], prefix: str
    ) -> dict[str, dict[str, Any]]:
        """{topic: payload} of what is retained below `prefix`."""
        fence = f"{prefix}/fence"
        reader = make_link(broker.address, "reader", f"{prefix}/#")
        reader.publish(fence, b"")
        found = {}
        while isinstance(event := reader.receive(DEADLINE), Message) and event.topic != fence:
            found[event.topic] = json.loads(event.payload)
        assert event is not None
        reader.close()
        return found

    def test_a_device_is_announced_until_the_switch_is_off(
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

    def test_a_device_that_is_dismissed_is_taken_back_alone_until_it_joins_again(
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
        watcher.on_message(b"online")  # Home Assistant starts anew
        assert link.flush(DEADLINE)
        assert list(self.retained(mosquitto_broker, make_link, prefix)) == [two]
        assert (tmp_path / RECORD).read_text() == f"{two}\n"
        link.publish(one, b"{}", retain=True)  # a server was killed before it had taken it back
        (tmp_path / RECORD).write_text(f"{one}\n{two}\n")
        after = HomeAssistant(link, TOPICS, tmp_path, wanted=True, prefix=prefix)
        after.start()
        after.on_dismissed("pi-1")
        assert link.flush(DEADLINE)
        assert list(self.retained(mosquitto_broker, make_link, prefix)) == [two]
        after.on_admitted("pi-1", profile())
        assert link.flush(DEADLINE)
        assert sorted(self.retained(mosquitto_broker, make_link, prefix)) == [one, two]

    def test_another_prefix_takes_back_what_was_announced_under_the_first(
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

    def test_it_is_said_again_when_home_assistant_starts_and_when_the_broker_comes_back(
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

        def heard() -> list[str]:
            """What has come since the last call, the state told by a message behind it."""
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
        assert heard() == [topic], "once, as long as it stays the same"
        watcher.on_admitted("pi-1", profile(machine="a Pi that was profiled"))
        assert heard() == [topic]
        watcher.on_message(b"offline")
        assert heard() == []
        watcher.on_message(b"online")
        assert heard() == [topic]
        watcher.on_reconnected()
        assert heard() == [topic]
