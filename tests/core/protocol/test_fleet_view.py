# SPDX-License-Identifier: Apache-2.0
"""The view of a fleet: a snapshot of its retained topics."""

from __future__ import annotations

import dataclasses
import json

import pytest
from msgspec.structs import replace
from retained_fleet import (
    FIGURES,
    METRICS,
    NOW,
    RETAINED,
    ROUND,
    RUN,
    SERVER,
    STATUS,
    TOPICS,
    device_of,
    view_of,
)

from splitee.mqtt.events import Message
from splitee.protocol.fleet import (
    DeviceStatus,
)
from splitee.protocol.fleet_view import MAX_DEVICES, DeviceView, FleetView
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import Topics


def test_snapshot_combines_the_messages_of_all_topics() -> None:
    snapshot = view_of(RETAINED).snapshot()
    assert (snapshot.server, snapshot.run, snapshot.phase, snapshot.metrics) == (SERVER, RUN, ROUND, METRICS)
    assert (snapshot.committed, snapshot.malformed, snapshot.finished) == (1, 0, False)
    assert snapshot.devices == (
        DeviceView(
            id="pi-1",
            online=True,
            doing="training",
            cut=3,
            stage="layer1.1",
            round=2,
            step=31,
            steps=62,
            loss=0.5,
            batches=93,
            bytes=1000,
            exit_accuracy=0.5,
            trunk_accuracy=0.75,
            seen=NOW - 60,
            train_samples=2000,
            in_phase=True,
            version="0.1.0",
        ),
    )


def test_snapshot_does_not_depend_on_the_order_of_messages() -> None:
    backwards = dict(reversed(RETAINED.items()))
    assert view_of(backwards).snapshot() == view_of(RETAINED).snapshot()


def test_metrics_include_device_figures_of_the_same_round_only() -> None:
    """Each device publishes its own figures: of this round, of the one before, or none yet."""
    view = view_of(RETAINED)
    older = replace(FIGURES, round=METRICS.round - 1)
    view.take(Message(TOPICS.device("pi-2", "metrics"), older.encode()), NOW)
    metrics = view.snapshot().metrics
    assert metrics is not None and set(metrics.devices) == {"pi-1"}
    view.take(Message(TOPICS.device("pi-2", "metrics"), FIGURES.encode()), NOW)
    metrics = view.snapshot().metrics
    assert metrics is not None and set(metrics.devices) == {"pi-1", "pi-2"}
    view.take(Message(TOPICS.device("pi-2", "metrics"), b"", retained=True), NOW)
    metrics = view.snapshot().metrics
    assert metrics is not None and set(metrics.devices) == {"pi-1"}


def test_snapshot_without_messages_is_empty() -> None:
    assert FleetView("lab").snapshot().empty
    assert not view_of({TOPICS.run: RUN}).snapshot().empty


def test_round_metrics_and_commit_of_an_earlier_run_are_ignored() -> None:
    view = view_of(RETAINED)
    later = RunSpec(protocol=1, run="r2", network="resnet18", num_classes=10, rounds=5)
    view.take(Message(TOPICS.run, later.encode()), NOW)
    snapshot = view.snapshot()
    assert (snapshot.phase, snapshot.metrics, snapshot.committed) == (None, None, 0)
    assert device_of(view).trunk_accuracy is None


@pytest.mark.parametrize("topic", RETAINED)
@pytest.mark.parametrize("payload", [b"{", b"[]", b"\xff\xfe", b'{"state": "on fire"}', b"{}", b"null"])
def test_malformed_message_is_counted_and_changes_nothing(topic: str, payload: bytes) -> None:
    view = view_of(RETAINED)
    before = view.snapshot()
    view.take(Message(topic, payload), NOW)
    assert view.snapshot() == dataclasses.replace(before, malformed=1)


def test_topics_of_other_fleets_are_ignored() -> None:
    view = FleetView("lab")
    view.take(Message(Topics("other").device("pi-1", "status"), STATUS.encode(), retained=True), NOW)
    view.take(Message(Topics("other").run, RUN.encode(), retained=True), NOW)
    assert view.snapshot().empty


def test_cleared_topics_are_removed_from_the_snapshot() -> None:
    view = view_of(RETAINED)
    for topic in RETAINED:
        view.take(Message(topic, b""), NOW)
    assert view.snapshot().empty


def test_seen_is_arrival_of_a_live_status_or_device_time_of_a_retained_one() -> None:
    view = view_of(RETAINED)
    assert device_of(view).seen == NOW - 60
    view.take(Message(TOPICS.device("pi-1", "status"), STATUS.encode()), NOW)
    assert device_of(view).seen == NOW


def test_seen_uses_message_age_if_the_device_clock_is_wrong() -> None:
    view, topic = view_of(RETAINED), TOPICS.device("pi-1", "status")
    a_year_ahead = replace(STATUS, time=NOW + 365 * 86400).encode()
    view.take(Message(topic, a_year_ahead, retained=True, age=7), NOW)
    assert device_of(view).seen == NOW - 7
    view.take(Message(topic, a_year_ahead, retained=True), NOW)  # of a broker that sends no age
    assert device_of(view).seen == NOW


def test_last_will_of_a_device_keeps_its_earlier_status_fields() -> None:
    view = view_of(RETAINED)
    will = DeviceStatus(state="offline", instance=1)
    view.take(Message(TOPICS.device("pi-1", "status"), will.encode()), NOW)
    device = device_of(view)
    assert not device.online
    assert (device.round, device.loss, device.bytes) == (2, 0.5, 1000)


@pytest.mark.parametrize(
    ("doing", "number", "step", "steps", "done"),
    [
        ("starting", 0, 0, 0, 0.0),
        ("training", 1, 0, 62, 0.0),
        ("training", 2, 31, 62, 1.5),
        ("waiting", 2, 62, 62, 2.0),
        ("evaluating", 2, 1, 16, 2.0),
        ("finished", 5, 0, 0, 5.0),
    ],
)
def test_device_view_counts_the_rounds_done(
    doing: str, number: int, step: int, steps: int, done: float
) -> None:
    status = {"state": "online", "instance": 1, "doing": doing, "round": number, "step": step, "steps": steps}
    view = FleetView("lab")
    view.take(Message(TOPICS.device("pi-1", "status"), json.dumps(status).encode(), retained=True), NOW)
    assert device_of(view).done == done


def test_devices_over_the_maximum_are_left_out_and_counted() -> None:
    view = FleetView("lab")
    payload = STATUS.encode()
    for number in range(MAX_DEVICES + 3):
        view.take(Message(TOPICS.device(f"pi-{number}", "status"), payload, retained=True), NOW)
    snapshot = view.snapshot()
    assert (len(snapshot.devices), snapshot.malformed) == (MAX_DEVICES, 3)


def test_changes_are_the_devices_with_new_messages() -> None:
    view = view_of(RETAINED)
    for device in ("pi-2", "pi-3"):
        view.take(Message(TOPICS.device(device, "status"), STATUS.encode()), NOW)
    assert list(view.changes()) == ["pi-1", "pi-2", "pi-3"], "at first all"
    assert view.changes() == {}
    view.take(Message(TOPICS.device("pi-2", "status"), replace(STATUS, step=32).encode()), NOW)
    view.take(Message(TOPICS.device("pi-3", "status"), b"{malformed"), NOW)
    (found,) = view.changes().values()
    assert found == view.snapshot().devices[1]
    assert found is not None and found.step == 32
    view.take(Message(TOPICS.device("pi-2", "status"), b""), NOW)
    assert view.changes() == {"pi-2": None}


def test_round_and_server_messages_change_devices() -> None:
    view = view_of(RETAINED)
    assert view.changes()["pi-1"] is not None
    view.take(Message(TOPICS.round, replace(ROUND, round=3).encode()), NOW)
    changed = view.changes()["pi-1"]
    assert changed is not None and not changed.in_phase
    view.take(Message(TOPICS.server_status, replace(SERVER, dismissed=("pi-1",)).encode()), NOW)
    assert view.changes() == {"pi-1": None}


def test_successive_changes_add_up_to_the_snapshot() -> None:
    view, known = FleetView("lab"), dict[str, DeviceView]()
    for topic, message in RETAINED.items():
        view.take(Message(topic, message.encode(), retained=True), NOW)
        known |= {device: found for device, found in view.changes().items() if found is not None}
    assert view.overview(list(known.values())) == view.snapshot()


@pytest.mark.parametrize(
    ("message", "seen"),
    [
        (Message(TOPICS.server_status, SERVER.encode()), NOW),
        (Message(TOPICS.server_status, SERVER.encode(), retained=True, age=7200), NOW - 7200),
        (Message(TOPICS.server_status, replace(SERVER, time=NOW - 9).encode(), retained=True), NOW - 9),
        (Message(TOPICS.server_status, SERVER.encode(), retained=True), None),
    ],
)
def test_server_seen_is_the_time_of_its_last_status(message: Message, seen: float | None) -> None:
    view = FleetView("lab")
    view.take(message, NOW)
    assert view.snapshot().server_seen == seen


@pytest.mark.parametrize("loss", ["1e300", "-1"])
def test_status_with_an_invalid_loss_is_malformed(loss: str) -> None:
    view = view_of(RETAINED)
    forged = f'{{"state":"online","instance":1,"loss":{loss}}}'.encode()
    view.take(Message(TOPICS.device("pi-1", "status"), forged), NOW)
    assert (view.snapshot().malformed, device_of(view).loss) == (1, 0.5)
