# SPDX-License-Identifier: Apache-2.0
"""Home Assistant finds the fleet's devices by MQTT discovery, and reads the topics that are there anyway.

Source: home-assistant.io, MQTT, "Device discovery payload" (Home Assistant 2024.11 or later).
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, get_args

from splitee import __version__
from splitee.durable import unwritable, write_atomically
from splitee.errors import ConfigError, StateError
from splitee.mqtt.port import Port
from splitee.protocol.fields import Doing
from splitee.protocol.fleet import Profile
from splitee.protocol.topics import Topics
from splitee_server.monitoring.observer import Observer

log = logging.getLogger(__name__)

STATES = (*get_args(Doing), "offline")
RECORD = Path("home-assistant") / "topics"  # in the server's state; a folder outlives --fresh


class HomeAssistant(Observer):
    """Announces each device that joins; takes back what is announced elsewhere, or no longer wanted."""

    def __init__(self, link: Port, topics: Topics, state: Path, *, wanted: bool, prefix: str) -> None:
        """`prefix`: Home Assistant's discovery prefix. `state`: remembers what is announced.

        Raises:
            ConfigError: no such prefix can be.
            StateError: `state` cannot be written.
        """
        if not prefix or set(prefix) & set("+#\0") or prefix.startswith(("$", "/")) or prefix.endswith("/"):
            raise ConfigError(f"--home-assistant-prefix {prefix!r}: expected a topic, such as homeassistant")
        self._link = link
        self._topics = topics
        self._prefix = prefix
        self._wanted = wanted
        self._record = state / RECORD
        self._announced: dict[str, bytes] = {}
        known = self._read()
        current = topics.discovery(prefix, "+").partition("+")[0]
        self._stale = [topic for topic in known if not (wanted and topic.startswith(current))]
        self._known = set(known) - set(self._stale)
        self.filters = (f"{prefix}/status",) if wanted else ()
        self._save()

    def start(self) -> None:
        self._take_back()

    def on_admitted(self, device: str, profile: Profile) -> None:
        if not self._wanted:
            return
        topic = self._topics.discovery(self._prefix, device)
        payload = json.dumps(discovery(self._topics, device, profile)).encode()
        if topic in self._stale:
            self._stale.remove(topic)
        if topic not in self._known:
            self._known.add(topic)
            self._note(topic)
        if self._announced.get(topic) != payload:
            self._announced[topic] = payload
            self._link.publish(topic, payload, retain=True)

    def on_dismissed(self, device: str) -> None:
        topic = self._topics.discovery(self._prefix, device)
        self._announced.pop(topic, None)
        if topic in self._known:
            self._known.remove(topic)
            self._stale.append(topic)
            self._take_back()

    def on_reconnected(self) -> None:
        self._take_back()
        self._announce_all()

    def on_message(self, payload: bytes) -> None:
        """Home Assistant says that it has started."""
        if payload == b"online":
            self._announce_all()

    def _announce_all(self) -> None:
        for topic, payload in self._announced.items():
            self._link.publish(topic, payload, retain=True)

    def _take_back(self) -> None:
        """An empty payload removes a device from Home Assistant."""
        gone = [topic for topic in self._stale if self._link.publish(topic, b"", retain=True)]
        if gone:
            log.info("Home Assistant: %d devices taken back", len(gone))
            self._stale = [topic for topic in self._stale if topic not in gone]
            self._save()

    def _read(self) -> list[str]:
        """The topics of earlier processes; a power cut may have left half a line, which is none."""
        try:
            return [line for line in self._record.read_text().splitlines() if line.endswith("/config")]
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise StateError(f"{self._record}: cannot be read ({error}); remove it") from None

    def _save(self) -> None:
        try:
            self._record.parent.mkdir(exist_ok=True)
            if not self._wanted and not self._stale:
                self._record.unlink(missing_ok=True)
                return
        except OSError as error:
            raise unwritable(self._record, error) from None
        lines = sorted((*self._known, *self._stale))
        write_atomically(self._record, "".join(f"{line}\n" for line in lines).encode())

    def _note(self, topic: str) -> None:
        try:
            with self._record.open("a") as file:
                file.write(f"{topic}\n")
        except OSError as error:
            log.warning("%s: %s; %s will not be taken back by itself", self._record, error.strerror, topic)


def discovery(topics: Topics, device: str, profile: Profile) -> dict[str, Any]:
    """What Home Assistant shows of `device`: the payload of its discovery topic.

    Status, accuracy and prediction say something of a device that is gone, too; the others do not.
    """
    unique = f"splitee/{topics.fleet}/{device}"
    status, here = topics.device(device, "status"), {"state_topic": topics.device(device, "status")}
    online = {"availability": [{"topic": status, "value_template": "{{ value_json.state }}"}]}
    predictions = topics.device(device, "predictions")
    metrics = topics.device(device, "metrics")
    sensors: dict[str, dict[str, Any]] = {
        "status": here
        | {
            "name": "Status",
            "device_class": "enum",
            "options": list(STATES),
            "value_template": "{{ value_json.doing | default('starting') "
            "if value_json.state == 'online' else 'offline' }}",
        },
        "round": here
        | online
        | {"name": "Round", "icon": "mdi:counter", "value_template": "{{ value_json.round | default(0) }}"},
        "accuracy": {
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
        "temperature": here
        | online
        | {
            "name": "Temperature",
            "device_class": "temperature",
            "unit_of_measurement": "°C",
            "state_class": "measurement",
            "entity_category": "diagnostic",
            "value_template": "{{ value_json.temperature | default(none) }}",
        },
        "prediction": {
            "name": "Last prediction",
            "state_topic": predictions,
            "value_template": "{{ value_json.label[:255] }}",
            "json_attributes_topic": predictions,
            "icon": "mdi:eye-outline",
        },
    }
    return {
        "device": {
            "identifiers": [unique],
            "name": device,
            "manufacturer": "Hetero-SplitEE",
            "sw_version": profile.version,
        }
        | ({"model": profile.capability.machine} if profile.capability else {}),
        "origin": {"name": "splitee", "sw_version": __version__},
        "components": {
            key: {"platform": "sensor", "unique_id": f"{unique}/{key}", **sensor}
            for key, sensor in sensors.items()
        },
        "qos": 1,
    }
