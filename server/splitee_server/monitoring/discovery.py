# SPDX-License-Identifier: Apache-2.0
"""The payload of a device's discovery topic, for Home Assistant.

Source: home-assistant.io, MQTT, "Device discovery payload" (Home Assistant 2024.11 or later).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, get_args

from splitee import __version__
from splitee.protocol import routes
from splitee.protocol.fields import Doing, ReleaseKind
from splitee.protocol.fleet import Profile
from splitee.protocol.rollouts import Install, UpdateState
from splitee.protocol.topics import Topics

TO_COME: list[UpdateState] = ["queued", "offered", "downloading", "trying"]
STATES = (*get_args(Doing), "offline")
MOST_CLASSES = 50  # that have a binary sensor; a device of more classes has none
LONGEST_NAME = 80  # characters of a class's name in an entity's; Home Assistant's ids have at most 255
CLASS_KEY = re.compile(r"class_[0-9a-f]{16}")
MOST_GONE = 200  # keys of a device's earlier binary sensors that are removed

Component = dict[str, Any]


def discovery(
    topics: Topics,
    device: str,
    profile: Profile | None,
    *,
    class_names: Sequence[str] = (),
    gone: Iterable[str] = (),
) -> dict[str, Any]:
    """What Home Assistant shows of `device`.

    Args:
        profile: None: the device predicts, and does not train.
        class_names: a binary sensor for each of these, too.
        gone: keys of binary sensors of earlier payloads; those that this one no longer has are removed.
    """
    unique = f"splitee/{topics.fleet}/{device}"
    components = (training_sensors(topics, device) if profile is not None else {}) | {
        "prediction": last_prediction(topics, device),
        "state": predicted_state(topics, device),
        "model_update": update(topics, device, "model", "Model"),
        "software_update": update(topics, device, "software", "Software"),
    }
    if len(class_names) <= MOST_CLASSES:
        components |= {class_key(name): class_sensor(topics, device, name) for name in class_names}
    removed: dict[str, Component] = {
        key: {"platform": "binary_sensor"} for key in sorted({*gone} - {*components})[:MOST_GONE]
    }
    return {
        "device": {
            "identifiers": [unique],
            "name": device,
            "manufacturer": "Hetero-SplitEE",
        }
        | _described(profile),
        "origin": {"name": "splitee", "sw_version": __version__},
        "components": {key: {"unique_id": f"{unique}/{key}", **found} for key, found in components.items()}
        | removed,
        "qos": 1,
    }


def _described(profile: Profile | None) -> dict[str, str]:
    """What the device reports of itself."""
    if profile is None:
        return {}
    version = {"sw_version": profile.version}
    return version | ({"model": profile.capability.machine} if profile.capability else {})


def class_keys(keys: Iterable[str]) -> frozenset[str]:
    """Those of `keys` that are of binary sensors of classes."""
    return frozenset(key for key in keys if CLASS_KEY.fullmatch(key))


def class_key(name: str) -> str:
    """The key of a class's binary sensor: the same in every run, whatever the name is made of."""
    return f"class_{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def training_sensors(topics: Topics, device: str) -> dict[str, Component]:
    """Status and accuracy are valid for an offline device, too; round and temperature are not."""
    metrics = topics.device(device, routes.FIGURES.leaf)
    status: Component = {"platform": "sensor", "state_topic": topics.device(device, routes.STATUS.leaf)}
    online = available(status["state_topic"])
    return {
        "status": status
        | {
            "name": "Status",
            "device_class": "enum",
            "options": list(STATES),
            "value_template": "{{ value_json.doing | default('starting') "
            "if value_json.state == 'online' else 'offline' }}",
        },
        "round": status
        | online
        | {"name": "Round", "icon": "mdi:counter", "value_template": "{{ value_json.round | default(0) }}"},
        "accuracy": {
            "platform": "sensor",
            "name": "Accuracy",
            "state_topic": metrics,
            "value_template": "{% set share = value_json.figures.get('exit_accuracy') %}"
            "{{ none if share is none else (100 * share) | round(1) }}",
            "json_attributes_topic": metrics,
            "json_attributes_template": "{% set found = value_json.figures %}"
            "{{ {'images': found.get('held_out_samples', 0), 'weakest_class': found.get('weakest_class')} "
            "| tojson }}",
            "unit_of_measurement": "%",
            "state_class": "measurement",
            "icon": "mdi:target",
        },
        "temperature": status
        | online
        | {
            "name": "Temperature",
            "device_class": "temperature",
            "unit_of_measurement": "°C",
            "state_class": "measurement",
            "entity_category": "diagnostic",
            "value_template": "{{ value_json.temperature | default(none) }}",
        },
    }


def last_prediction(topics: Topics, device: str) -> Component:
    """The newest prediction, whether the device is online or not."""
    predictions = topics.device(device, routes.PREDICTIONS.leaf)
    return {
        "platform": "sensor",
        "name": "Last prediction",
        "state_topic": predictions,
        "value_template": "{{ value_json.label[:255] }}",
        "json_attributes_topic": predictions,
        "icon": "mdi:eye-outline",
    }


def predicted_state(topics: Topics, device: str) -> Component:
    """The class on which several predictions agree, while the device predicts."""
    state = topics.device(device, routes.PREDICTED_STATE.leaf)
    return {
        "platform": "sensor",
        "name": "Predicted state",
        "state_topic": state,
        "value_template": "{{ value_json.label }}",
        "json_attributes_topic": state,
        "json_attributes_template": "{{ {'confidence': value_json.confidence | round(3), "
        "'since': value_json.since | int | timestamp_utc, 'unsure': value_json.get('unsure', false)} "
        "| tojson }}",
        "icon": "mdi:eye-check-outline",
    } | available(topics.device(device, routes.SERVING.leaf))


def class_sensor(topics: Topics, device: str, name: str) -> Component:
    """On while the predicted state is the class `name`; off in all others, `unsure` included."""
    shown = "".join(mark for mark in name if mark.isprintable()).strip()[:LONGEST_NAME]
    return {
        "platform": "binary_sensor",
        "name": shown or class_key(name).replace("_", " "),
        "state_topic": topics.device(device, routes.PREDICTED_STATE.leaf),
        "value_template": "{{ 'ON' if value_json.label == "
        + literal(name)
        + " and not value_json.get('unsure', false) else 'OFF' }}",
    } | available(topics.device(device, routes.SERVING.leaf))


def update(topics: Topics, device: str, kind: ReleaseKind, title: str) -> Component:
    """The update of one kind of release, as the server sees it; it can be ordered for a sleeping device.

    A release that failed or was withdrawn cannot be ordered: the latest version is then the installed one,
    and the summary gives the reason. update_percentage is the share of bytes received; during a trial there
    is none.
    """
    return {
        "platform": "update",
        "name": title,
        "title": title,
        "state_topic": topics.device(device, routes.DEVICE_UPDATE.leaf),
        "value_template": (
            f"{{% set found = value_json.get('{kind}', {{}}) %}}"
            "{% set state = found.get('state') or '' %}"
            "{% set installed = found.get('installed') or 'none' %}"
            "{% set size = found.get('size', 0) %}"
            "{% set reason = found.get('reason', '') %}"
            "{{ {'installed_version': installed,"
            f" 'latest_version': found.get('latest') or installed if state in {TO_COME} else installed,"
            " 'in_progress': state in ['downloading', 'trying'],"
            " 'update_percentage': [100, 100 * found.get('have', 0) // size] | min"
            " if state == 'downloading' and size else none,"
            " 'release_summary': (state ~ (': ' if state and reason else '') ~ reason)[:255]}"
            " | tojson }}"
        ),
        "command_topic": topics.device(device, routes.INSTALL.leaf),
        "payload_install": Install(kind=kind).encode().decode(),
        **available(routes.SERVER_STATUS.topic(topics)),
    } | ({"device_class": "firmware"} if kind == "software" else {})


def available(topic: str) -> Component:
    """Availability by a status whose `state` is Home Assistant's own `online` or `offline`."""
    return {"availability": [{"topic": topic, "value_template": "{{ value_json.state }}"}]}


def literal(text: str) -> str:
    """`text` as a string of Jinja's, which reads escapes as Python does, each \\u for a whole character."""
    return json.dumps(text, ensure_ascii=False)
