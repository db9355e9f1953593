# SPDX-License-Identifier: Apache-2.0
"""Announces the fleet's devices to Home Assistant by MQTT discovery; it reads topics that exist anyway."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from splitee.durable import unwritable, write_atomically
from splitee.errors import ConfigError, StateError
from splitee.mqtt.port import Port
from splitee.protocol.fleet import Profile
from splitee.protocol.release_orders import MOST_DEVICES
from splitee.protocol.topics import Topics
from splitee_server.monitoring.discovery import class_keys, discovery
from splitee_server.monitoring.observer import Observer

log = logging.getLogger(__name__)

RECORD = Path("home-assistant") / "topics"  # in the server's state; a folder outlives --fresh


class HomeAssistant(Observer):
    """Announces each device that joins or predicts; removes devices that are not wanted there any more."""

    def __init__(
        self,
        link: Port,
        topics: Topics,
        state: Path,
        *,
        wanted: bool,
        prefix: str,
        classes: bool = False,
        class_names: Sequence[str] = (),
    ) -> None:
        """Reads what earlier processes have announced.

        Args:
            state: folder that records what is announced.
            prefix: Home Assistant's discovery prefix.
            classes: a binary sensor for each class of a device.
            class_names: the classes of devices that only predict; empty: they are not known.

        Raises:
            ConfigError: the prefix is not valid.
            StateError: `state` cannot be written.
        """
        if not prefix or set(prefix) & set("+#\0") or prefix.startswith(("$", "/")) or prefix.endswith("/"):
            raise ConfigError(f"--home-assistant-prefix {prefix!r}: expected a topic, such as homeassistant")
        self._link = link
        self._topics = topics
        self._prefix = prefix
        self._wanted = wanted
        self._classes = classes
        self._class_names = tuple(class_names)
        self._record = state / RECORD
        self._announced: dict[str, bytes] = {}
        self._known = self._read()
        current = topics.discovery(prefix, "+").partition("+")[0]
        self._stale = [topic for topic in self._known if not (wanted and topic.startswith(current))]
        for topic in self._stale:
            del self._known[topic]
        self.filters = (f"{prefix}/status",) if wanted else ()
        self._save()

    def start(self) -> None:
        self._withdraw()

    def on_admitted(self, device: str, profile: Profile) -> None:
        if self._wanted:
            self._announce(device, profile, profile.class_names)

    def on_predicting(self, device: str, profile: Profile | None) -> None:
        is_new = self._topics.discovery(self._prefix, device) not in self._announced
        if self._wanted and is_new and len(self._announced) < MOST_DEVICES:
            self._announce(device, profile, self._class_names if profile is None else profile.class_names)

    def _announce(self, device: str, profile: Profile | None, class_names: Sequence[str]) -> None:
        topic = self._topics.discovery(self._prefix, device)
        found = discovery(
            self._topics,
            device,
            profile,
            class_names=class_names if self._classes else (),
            gone=self._known.get(topic, ()),
        )
        payload = json.dumps(found).encode()
        if topic in self._stale:
            self._stale.remove(topic)
        sensors = class_keys(found["components"])
        if self._known.get(topic) != sensors:
            self._known[topic] = sensors
            self._note(topic)
        if self._announced.get(topic) != payload:
            self._announced[topic] = payload
            self._link.publish(topic, payload, retain=True)

    def on_dismissed(self, device: str) -> None:
        topic = self._topics.discovery(self._prefix, device)
        self._announced.pop(topic, None)
        if topic in self._known:
            del self._known[topic]
            self._stale.append(topic)
            self._withdraw()

    def on_reconnected(self) -> None:
        self._withdraw()
        self._announce_all()

    def on_message(self, payload: bytes) -> None:
        """Home Assistant says that it has started."""
        if payload == b"online":
            self._announce_all()

    def _announce_all(self) -> None:
        for topic, payload in self._announced.items():
            self._link.publish(topic, payload, retain=True)

    def _withdraw(self) -> None:
        """An empty payload removes a device from Home Assistant."""
        gone = [topic for topic in self._stale if self._link.publish(topic, b"", retain=True)]
        if gone:
            log.info("Home Assistant: %d devices removed", len(gone))
            self._stale = [topic for topic in self._stale if topic not in gone]
            self._save()

    def _read(self) -> dict[str, frozenset[str]]:
        """{topic: keys of binary sensors} of earlier processes; a power cut may have left half a line."""
        try:
            lines = [line.split("\t") for line in self._record.read_text().splitlines()]
            return {topic: class_keys(keys) for topic, *keys in lines if topic.endswith("/config")}
        except FileNotFoundError:
            return {}
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
        lines = sorted(self._line(topic) for topic in (*self._known, *self._stale))
        write_atomically(self._record, "".join(lines).encode())

    def _line(self, topic: str) -> str:
        return "\t".join((topic, *sorted(self._known.get(topic, ())))) + "\n"

    def _note(self, topic: str) -> None:
        """The last line of a topic counts."""
        try:
            with self._record.open("a") as file:
                file.write(self._line(topic))
        except OSError as error:
            log.warning("%s: %s; %s will not be removed by itself", self._record, error.strerror, topic)
