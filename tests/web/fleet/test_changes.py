# SPDX-License-Identifier: Apache-2.0
"""The changes between two polls of a fleet, and what browsers receive of them."""

from __future__ import annotations

import json
from typing import Any

from msgspec.structs import replace

from splitee.mqtt.events import Message
from splitee.protocol.fleet import DeviceStatus, ServerStatus
from splitee.protocol.fleet_view import FleetView
from splitee.protocol.inference import PredictedState, Serving
from splitee.protocol.topics import Topics
from splitee.protocol.traffic import ByPurpose, Traffic
from splitee_web.event_streams import EventStreams
from splitee_web.fleet.broadcaster import Broadcaster
from splitee_web.fleet.changes import (
    BURST,
    EVENT_EVERY,
    MOST_EVENTS,
    SUMS_EVERY,
    ChangeDetector,
    encode_fleet,
)

NOW = 1_800_000_000.0
TOPICS = Topics("lab")
STATUS = DeviceStatus(state="online", instance=1, doing="training", round=1, step=1, steps=100, loss=0.5)
SERVER = ServerStatus(state="online", instance=1, run="r1")


class Watched:
    """A fleet view with its change detector, and the broadcaster that the changes go to."""

    def __init__(self) -> None:
        self.view = FleetView("lab")
        self.detector = ChangeDetector(self.view)
        self.broadcaster = Broadcaster(EventStreams(), encode_fleet(self.view.snapshot()))
        self.now = NOW

    def hear(self, device: str, status: DeviceStatus, age: int | None = None) -> None:
        topic = TOPICS.device(device, "status")
        self.view.take(Message(topic, status.encode(), retained=age is not None, age=age), self.now)

    def poll(self, is_settled: bool = True) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The rows and the events that are sent."""
        changes = self.detector.poll(self.now, is_settled=is_settled)
        self.broadcaster.take(changes)
        return [json.loads(row) for row in changes.rows], [json.loads(event) for event in changes.events]

    @property
    def whole(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.broadcaster.whole())
        return found


def test_row_has_only_changed_fields_and_the_whole_state_has_all() -> None:
    watched = Watched()
    watched.hear("pi-1", STATUS)
    (row,), _ = watched.poll()
    assert (row["id"], row["loss"], row["temperature"]) == ("pi-1", 0.5, None)
    assert watched.poll() == ([], [])
    watched.hear("pi-1", replace(STATUS, step=2))
    assert watched.poll()[0] == [{"id": "pi-1", "step": 2}]
    (device,) = watched.whole["fleet"]["devices"]
    assert device == {**row, "step": 2}


def test_value_that_becomes_none_is_sent() -> None:
    watched = Watched()
    watched.hear("pi-1", STATUS)
    watched.poll()
    watched.hear("pi-1", replace(STATUS, loss=None))
    assert watched.poll()[0] == [{"id": "pi-1", "loss": None}]


def test_devices_before_the_first_look_are_not_reported_as_new() -> None:
    watched = Watched()
    watched.hear("pi-1", STATUS, age=0)
    watched.hear("pi-2", replace(STATUS, state="offline"), age=86_400)
    _, events = watched.poll(is_settled=False)
    assert [(event["kind"], event["device"], event["time"]) for event in events] == [
        ("offline", "pi-2", NOW - 86_400)
    ]
    watched.hear("pi-3", STATUS)
    _, events = watched.poll()
    assert [(event["kind"], event["device"]) for event in events] == [("came", "pi-3")]


def test_fleet_sums_are_delayed_and_server_changes_are_sent_at_once() -> None:
    watched = Watched()
    watched.hear("pi-1", STATUS)
    assert watched.detector.poll(NOW, is_settled=True).fleet is not None
    watched.hear("pi-1", replace(STATUS, step=2))
    assert watched.detector.poll(NOW + 1, is_settled=True).fleet is None
    watched.view.take(Message(TOPICS.server_status, SERVER.encode()), NOW)
    sent = watched.detector.poll(NOW + 2, is_settled=True).fleet
    assert sent is not None and json.loads(sent)["server"]["state"] == "online"
    assert watched.detector.poll(NOW + 2 + SUMS_EVERY, is_settled=True).fleet is None, "the same sums"
    watched.hear("pi-1", replace(STATUS, traffic=Traffic(up=ByPurpose(training=900))))
    assert watched.detector.poll(NOW + 1 + 2 * SUMS_EVERY, is_settled=True).fleet is None
    sent = watched.detector.poll(NOW + 2 + 2 * SUMS_EVERY, is_settled=True).fleet
    assert sent is not None and json.loads(sent)["traffic"]["up"]["training"] == 900


def test_device_that_flips_its_state_does_not_crowd_out_other_events() -> None:
    """Its row shows the last state all the same, and after a while its events are sent again."""
    watched = Watched()
    watched.hear("pi-1", STATUS)
    watched.poll()
    topic = TOPICS.device("evil", "state")
    for number in range(3 * MOST_EVENTS):
        if number % 100 == 0:
            watched.view.take(Message(TOPICS.device("evil", "status"), b""), watched.now)  # it comes anew
            watched.hear("evil", STATUS)
            serving = Serving(state="online", instance=1)
            watched.view.take(Message(TOPICS.device("evil", "serving"), serving.encode()), watched.now)
        state = PredictedState(label=f"class {number}", confidence=0.9, since=NOW, time=NOW)
        watched.view.take(Message(topic, state.encode()), watched.now)
        watched.now += 0.5
        rows, _ = watched.poll()
        assert rows[-1]["id"] == "evil"
    of_evil = [event for event in watched.whole["log"] if event["device"] == "evil"]
    assert BURST <= len(of_evil) <= BURST + 3 * MOST_EVENTS * 0.5 / EVENT_EVERY + 1
    assert any(event["device"] == "pi-1" for event in watched.whole["log"])


def test_event_log_is_bounded_for_thousands_of_flapping_devices() -> None:
    watched = Watched()
    for state in ("online", "offline", "online"):
        for number in range(2 * MOST_EVENTS):
            watched.hear(f"pi-{number}", replace(STATUS, state=state))
        _, events = watched.poll()
        assert len(events) == MOST_EVENTS
    assert len(watched.whole["log"]) == MOST_EVENTS
    assert {event["kind"] for event in watched.whole["log"]} == {"online"}


def test_removed_device_is_reported_once() -> None:
    watched = Watched()
    watched.hear("pi-1", STATUS)
    watched.poll()
    watched.view.take(Message(TOPICS.device("pi-1", "status"), b"", retained=True), NOW)
    assert watched.detector.poll(NOW, is_settled=True).gone == ("pi-1",)
    assert watched.detector.poll(NOW, is_settled=True).gone == ()
