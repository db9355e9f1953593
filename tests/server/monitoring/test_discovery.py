# SPDX-License-Identifier: Apache-2.0
"""The payload of Home Assistant's discovery, and its templates applied to messages of the fleet."""

from __future__ import annotations

import json
import re
from typing import Any, get_args

import pytest
from home_assistant import profile, verdict
from jinja2.sandbox import ImmutableSandboxedEnvironment

from splitee.protocol.accuracies import ClassRecall
from splitee.protocol.fields import Doing
from splitee.protocol.fleet import DeviceFigures, DeviceMetrics, DeviceStatus
from splitee.protocol.inference import PredictedState, PredictionReport, Serving
from splitee.protocol.rollouts import DeviceUpdate, Install, Update
from splitee.protocol.topics import Topics
from splitee_server.monitoring.discovery import MOST_CLASSES, class_key, discovery

TOPICS = Topics("barn")
# homeassistant/components/mqtt/discovery.py: TOPIC_MATCHER, behind the prefix
DISCOVERY_TOPIC = re.compile(r"device/(?:[a-zA-Z0-9_-]+/)?[a-zA-Z0-9_-]+/config")
# Keys of DEVICE_DISCOVERY_SCHEMA at the root; with any other key the whole device is refused.
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


def shown(payload: dict[str, Any], sensor: str, message: bytes) -> str:
    """The value that Home Assistant shows for `sensor` after `message` on its topic."""
    template = payload["components"][sensor]["value_template"]
    return rendered(template, message)


def rendered(template: str, message: bytes) -> str:
    return (
        ImmutableSandboxedEnvironment().from_string(template).render(value_json=json.loads(message)).strip()
    )


def test_payload_has_the_fields_that_home_assistant_accepts() -> None:
    payload = discovery(TOPICS, "pi-1", profile(machine="Raspberry Pi 4 Model B"))
    assert set(payload) <= ROOT
    assert payload["device"]["model"] == "Raspberry Pi 4 Model B"
    assert payload["origin"]["name"] == "splitee"
    training = {"status", "round", "accuracy", "temperature"}
    inference = {"prediction", "state", "model_update", "software_update"}
    assert set(payload["components"]) == training | inference
    for entity in payload["components"].values():
        assert entity["platform"] in ("sensor", "update")
        assert entity["name"] and entity["unique_id"] and entity["state_topic"]
        assert ("options" in entity) == (entity.get("device_class") == "enum")
        assert entity.get("device_class") != "enum" or not {"state_class", "unit_of_measurement"} & set(
            entity
        )
        assert "state_class" not in entity or "unit_of_measurement" in entity
    assert "model" not in discovery(TOPICS, "pi-1", profile())["device"]


def test_payload_of_a_device_that_only_predicts_has_no_training_sensors() -> None:
    payload = discovery(TOPICS, "pi-1", None, class_names=("cat",))
    inference = {"prediction", "state", "model_update", "software_update"}
    assert set(payload["components"]) == inference | {class_key("cat")}
    assert set(payload["device"]) == {"identifiers", "name", "manufacturer"}
    whole = discovery(TOPICS, "pi-1", profile(), class_names=("cat",))
    assert payload["components"].items() <= whole["components"].items()


def test_topics_and_identities_are_unique_across_devices_and_fleets() -> None:
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
    assert len(identities) == len(names) ** 2 * 9


def test_sensors_show_the_state_of_a_training_and_an_offline_device() -> None:
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
        states_shown = [rendered(availability["value_template"], message) for message in (online, gone)]
        assert states_shown == ["online", "offline"], "Home Assistant's own words for it"


def test_accuracy_sensor_shows_the_accuracy_of_the_exit_in_percent() -> None:
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


def test_prediction_sensor_shows_the_label_and_the_rest_as_attributes() -> None:
    payload = discovery(TOPICS, "pi-1", profile())
    report = PredictionReport(
        image="x.jpg", label="snail", probability=0.9, entropy=0.1, source="exit", milliseconds=3, time=1.0
    )
    assert shown(payload, "prediction", report.encode()) == "snail"
    sensor = payload["components"]["prediction"]
    assert sensor["json_attributes_topic"] == sensor["state_topic"] == TOPICS.device("pi-1", "predictions")


HOSTILE = (
    "cat",
    "CAT",
    '" or 1 == 1 or "',
    "' ~ states('person.owner') ~ '",
    "{{ 7 * 7 }}",
    "}} {% for i in range(9) %}x{% endfor %}",
    "{# #}",
    "back\\slash\\",
    "\\u0041",
    "line\nfeed\r\n",
    "nul\0 bell\a",
    "\u2028 \u202e right to left",
    "Käse 猫 \U0001f431",
    " ",
    "x" * 200,
    "unsure",
    "none",
)


class TestByHomeAssistantItself:
    """Checks by Home Assistant's own schemas and template engine. 2024.3, the newest for Python 3.11, knows
    no payload of a whole device: each component is checked alone, with the fields of the device.
    """

    @pytest.fixture
    def payload(self) -> dict[str, Any]:
        return discovery(TOPICS, "pi-1", profile(machine="a Pi", class_names=HOSTILE), class_names=HOSTILE)

    @staticmethod
    def entities(payload: dict[str, Any]) -> dict[str, Any]:
        shared = {key: payload[key] for key in ("device", "origin", "qos")}
        return {key: shared | component for key, component in payload["components"].items()}

    def test_entities_are_accepted_and_wrong_ones_are_refused_or_ignored(
        self, payload: dict[str, Any]
    ) -> None:
        components = payload["components"]
        wrong = {
            "template": components["state"] | {"value_template": "{{ value_json.label"},
            "topic": components["model_update"] | {"command_topic": "devices/+/install"},
            "field": components["state"] | {"since": 3},
        }
        found = verdict(self.entities(payload) | wrong, [])
        assert set(found["refused"]) == {"template", "topic"}
        later = {"status": ["options"]}  # known from 2024.10 on
        assert found["ignored"] == later | {"field": ["since"]}
        assert len(components) == 8 + len(HOSTILE)

    def test_binary_sensor_is_on_for_its_own_class_only(self, payload: dict[str, Any]) -> None:
        messages = [*(predicted(label) for label in HOSTILE), predicted("unsure", unsure=True)]
        pairs = [(name, message) for name in HOSTILE for message in messages]
        shown = verdict(
            self.entities(payload),
            [(class_key(name), "value_template", message.decode()) for name, message in pairs],
        )["rendered"]
        assert shown == ["ON" if message == predicted(name) else "OFF" for name, message in pairs]

    def test_state_sensor_shows_a_label_with_confidence_and_time(self, payload: dict[str, Any]) -> None:
        labels = [label for label in HOSTILE if label.strip() == label]
        states = [("state", "value_template", predicted(label).decode()) for label in labels]
        attributes = [
            ("state", "json_attributes_template", message.decode())
            for message in (predicted("cat"), predicted("unsure", unsure=True))
        ]
        (availability,) = payload["components"]["state"]["availability"]
        assert availability["topic"] == TOPICS.device("pi-1", "serving")
        serving = [
            ("serving", "value_template", Serving(state=state, instance=1).encode().decode())
            for state in ("online", "offline")
        ]
        entities = self.entities(payload) | {"serving": availability | {"platform": "sensor"}}
        found = verdict(entities, states + attributes + serving)["rendered"]
        assert found[: len(labels)] == labels
        cat = {"confidence": 0.912, "since": "2026-01-02T03:04:05+00:00", "unsure": False}
        assert [json.loads(text) for text in found[len(labels) : -2]] == [cat, cat | {"unsure": True}]
        assert found[-2:] == ["online", "offline"]

    def test_update_entity_shows_installed_and_latest_version_and_progress(
        self, payload: dict[str, Any]
    ) -> None:
        known = {"installed": "1.0", "latest": "1.1"}
        hostile = '"}} {{ 1 }}\n' + "x" * 300
        cases: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
            ({}, "off", {"installed_version": "none", "latest_version": "none"}),
            ({"installed": "1.0"}, "off", {"installed_version": "1.0", "latest_version": "1.0"}),
            (
                {"latest": "run-b 12", "state": "offered"},
                "on",
                {"installed_version": "none", "latest_version": "run-b 12"},
            ),
            (known | {"state": "queued"}, "on", {"release_summary": "queued"}),
            (known | {"state": "downloading"}, "on", {"in_progress": True}),
            (
                known | {"state": "downloading", "have": 2 << 20, "size": 3 << 20},
                "on",
                {"in_progress": True, "update_percentage": 66},
            ),
            (
                known | {"state": "downloading", "have": 9, "size": 3},
                "on",
                {"in_progress": True, "update_percentage": 100},
            ),
            (known | {"state": "trying", "have": 3, "size": 3}, "on", {"in_progress": True}),
            (known | {"installed": "1.1", "state": "in service"}, "off", {}),
            (
                known | {"state": "failed", "reason": hostile},
                "off",
                {"latest_version": "1.0", "release_summary": f"failed: {hostile}"[:255]},
            ),
            (known | {"state": "expired"}, "off", {"latest_version": "1.0"}),
            (known | {"state": "rolled back"}, "off", {"latest_version": "1.0"}),
        ]
        cases_by_kind = [(kind, case) for kind in ("model", "software") for case in cases]
        messages = [
            (
                f"{kind}_update",
                "value_template",
                DeviceUpdate(**{kind: Update(**fields)}).encode().decode(),
            )
            for kind, (fields, _, _) in cases_by_kind
        ]
        found = verdict(self.entities(payload), messages)
        assert found["updates"] == [state for _, (_, state, _) in cases_by_kind]
        for (_, (fields, _, expected)), text in zip(cases_by_kind, found["rendered"], strict=True):
            shown = json.loads(text)
            assert set(shown) == {
                "installed_version", "latest_version", "in_progress", "update_percentage", "release_summary",
            }  # fmt: skip
            defaults = {
                "installed_version": fields.get("installed", "none"),
                "latest_version": fields.get("latest", "none"),
                "in_progress": False,
                "update_percentage": None,
                "release_summary": fields.get("state", ""),
            }
            assert shown == defaults | expected


def predicted(label: str, *, unsure: bool = False) -> bytes:
    since = 1767323045.25
    return PredictedState(label=label, confidence=0.91234, since=since, time=since, unsure=unsure).encode()


def test_click_on_install_sends_a_message_that_the_server_decodes() -> None:
    components = discovery(TOPICS, "pi-1", profile())["components"]
    for kind in ("model", "software"):
        entity = components[f"{kind}_update"]
        assert entity["command_topic"] == TOPICS.device("pi-1", "install")
        assert Install.decode(entity["payload_install"].encode()).kind == kind
        assert not entity.get("retain", False), "a click that is kept would be carried out again"


def test_class_names_are_shortened_and_too_many_classes_have_no_sensors() -> None:
    components = discovery(TOPICS, "pi-1", profile(class_names=HOSTILE), class_names=HOSTILE)["components"]
    shown = {name: components[class_key(name)]["name"] for name in HOSTILE}
    assert shown["cat"] == "cat"
    assert shown["x" * 200] == "x" * 80
    assert shown["nul\0 bell\a"] == "nul bell"
    assert shown[" "].startswith("class ")
    names = tuple(f"class {n}" for n in range(MOST_CLASSES + 1))
    for found, sensors in ((names[:-1], MOST_CLASSES), (names, 0)):
        components = discovery(TOPICS, "pi-1", profile(class_names=found), class_names=found)["components"]
        assert len(components) == 8 + sensors
