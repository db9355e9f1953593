# SPDX-License-Identifier: Apache-2.0
"""The events that follow from two looks at a fleet, one after the other."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from msgspec.structs import replace as struct_with
from retained_fleet import rollout

from splitee.protocol.fleet import FleetMetrics, Metrics, ServerStatus
from splitee.protocol.fleet_view import DeviceView, FleetSnapshot, FleetView
from splitee.protocol.inference import PredictedState
from splitee.protocol.model_views import ModelInService
from splitee.protocol.overview import HistoryPoint
from splitee.protocol.rollouts import DeviceUpdate, Rollout, Update
from splitee.protocol.rounds import RoundOpen
from splitee.protocol.run_spec import RunSpec
from splitee_web.fleet.event_log import (
    LONGEST_TEXT,
    Event,
    events_at_start,
    events_of_device,
    events_of_fleet,
    events_of_past,
)

NOW = 1_800_000_000.0
DEVICE = DeviceView(
    id="pi-1",
    online=True,
    doing="training",
    cut=3,
    stage=None,
    round=1,
    step=0,
    steps=10,
    loss=None,
    batches=0,
    bytes=0,
    exit_accuracy=None,
    trunk_accuracy=None,
    seen=NOW - 1,
    train_samples=200,
)
SERVER = ServerStatus(state="online", instance=1, run="r1")
FLEET = replace(
    FleetView("lab").snapshot(),
    server=SERVER,
    server_seen=NOW - 2,
    run=RunSpec(protocol=1, run="r1", network="resnet18", num_classes=10, rounds=5),
)


def kinds_and_texts(events: Any) -> list[tuple[str, str]]:
    return [(event.kind, event.text) for event in events]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({}, {"step": 5, "loss": 0.5}, []),
        ({}, {"online": False}, [("offline", "offline")]),
        ({"online": False}, {}, [("online", "online again")]),
        ({}, {"next_cut": 5}, [("cut", "requests cut 5 instead of 3")]),
        ({"next_cut": 5}, {"next_cut": 5}, []),
        ({"next_cut": 5}, {"cut": 5}, [("cut", "is cut at 5 from now on, was 3")]),
        ({"cut": None}, {}, [("joined", "requests to join with cut 3, 200 images for training")]),
    ],
)
def test_device_changes_become_events(
    before: dict[str, Any], after: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    found = list(events_of_device(replace(DEVICE, **before), replace(DEVICE, **after), NOW))
    assert kinds_and_texts(found) == expected
    assert {(event.device, event.time) for event in found} <= {("pi-1", NOW - 1)}


def test_new_device_gives_events_and_a_known_one_only_if_offline() -> None:
    assert [event.kind for event in events_of_device(None, DEVICE, NOW)] == ["came", "joined"]
    assert list(events_at_start(DEVICE)) == []
    long_gone = replace(DEVICE, online=False, seen=NOW - 86_400)
    assert list(events_at_start(long_gone)) == [Event(NOW - 86_400, "offline", "pi-1", "offline")]
    assert list(events_at_start(replace(long_gone, seen=None))) == []  # unknown since when


def test_late_offline_event_keeps_the_time_of_death() -> None:
    """The retained last will of a device that died while the page had no broker."""
    (event,) = events_of_device(DEVICE, replace(DEVICE, online=False, seen=NOW - 3600), NOW)
    assert event.time == NOW - 3600
    after = replace(FLEET, server=struct_with(SERVER, state="offline"), server_seen=NOW - 7200)
    (event,) = events_of_fleet(FLEET, after, NOW)
    assert (event.kind, event.time) == ("server-offline", NOW - 7200)


def test_event_times_are_not_in_the_future() -> None:
    model = ModelInService("1" * 64, "in service", since=NOW + 1e6)
    after = replace(DEVICE, online=False, seen=NOW + 1e6, model=model)
    assert [event.time for event in events_of_device(DEVICE, after, NOW)] == [NOW, NOW]


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("offered", "model-offered"),
        ("in service", "model-in-service"),
        ("failed", "model-failed"),
        ("rolled back", "model-rolled-back"),
    ],
)
def test_model_state_changes_become_events(state: Any, kind: str) -> None:
    model = ModelInService("ab" * 32, state, reason="it is", round=4)
    found = list(events_of_device(DEVICE, replace(DEVICE, model=model), NOW))
    assert kinds_and_texts(found) == [(kind, f"model abababab of round 4 {state}: it is")]
    after = replace(DEVICE, model=replace(model, reason="other words"))
    assert list(events_of_device(replace(DEVICE, model=model), after, NOW)) == []


@pytest.mark.parametrize("state", ["downloading", "trying"])
def test_model_download_and_trial_are_no_events(state: Any) -> None:
    after = replace(DEVICE, model=ModelInService("ab" * 32, state))
    assert list(events_of_device(DEVICE, after, NOW)) == []


def test_software_results_become_events() -> None:
    def device(state: Any, latest: str = "0.3.0", reason: str = "") -> DeviceView:
        installed = latest if state == "in service" else "0.2.0"
        software = Update(installed=installed, latest=latest, state=state, reason=reason, have=1, size=2)
        return replace(DEVICE, update=DeviceUpdate(software=software))

    looks = [
        DEVICE, device("in service", "0.2.0"), device("offered"), device("downloading"), device("trying"),
        device("failed", reason="no space"), device("failed", reason="none"), device("rolled back", "0.4.0"),
        device("in service", "0.5.0"),
    ]  # fmt: skip
    found = [event for before, after in pairwise(looks) for event in events_of_device(before, after, NOW)]
    assert kinds_and_texts(found) == [
        ("software-failed", "software 0.3.0: failed: no space (0.2.0 in service)"),
        ("software-rolled-back", "software 0.4.0: rolled back (0.2.0 in service)"),
        ("software-in-service", "software 0.5.0: in service"),
    ]


def test_predicted_state_change_is_an_event_at_the_time_it_began() -> None:
    def device(label: str, since: float = NOW - 5) -> DeviceView:
        state = PredictedState(label=label, confidence=0.934, since=since, time=NOW)
        return replace(DEVICE, predicted_state=state)

    looks = [DEVICE, device("dog"), device("dog", NOW - 4), device("cat"), DEVICE]
    found = [event for before, after in pairwise(looks) for event in events_of_device(before, after, NOW)]
    assert kinds_and_texts(found) == [("predicted-state", "state cat (0.93), was dog")]
    assert [event.time for event in found] == [NOW - 5]


def test_rollout_progress_becomes_events() -> None:
    def at(*rollouts: Rollout) -> FleetSnapshot:
        return replace(FLEET, rollouts=rollouts)

    first = rollout(wave=1)
    looks = [
        at(rollout("old", "finished")), at(rollout("old", "finished"), first), at(rollout()),
        at(rollout(state="paused")), at(rollout()), at(rollout(state="stopped", reason="3 devices failed")),
        at(rollout(state="rolled back")), at(),
    ]  # fmt: skip
    found = [event for before, after in pairwise(looks) for event in events_of_fleet(before, after, NOW)]
    assert kinds_and_texts(found) == [
        ("rollout-began", "rollout spring began: model barn-7, 31 devices in 3 waves"),
        ("rollout-wave", "rollout spring: wave 2 of 3, 10 devices"),
        ("rollout-paused", "rollout spring paused"),
        ("rollout-resumed", "rollout spring resumed"),
        ("rollout-stopped", "rollout spring stopped: 3 devices failed"),
        ("rollout-rolled-back", "rollout spring rolled back"),
    ]
    assert [event.time for event in found] == [first.created, *[NOW] * 5]
    assert list(events_of_fleet(at(), at(rollout("old", "finished")), NOW)) == [], "it is none of now"


def phase(name: Any, number: int, **others: Any) -> RoundOpen:
    return RoundOpen(run="r1", round=number, attempt=1, phase=name, **others)


def test_rounds_and_the_end_of_the_run_become_events() -> None:
    metrics = Metrics(
        run="r1",
        round=1,
        rounds=5,
        seconds=20.0,
        batches_trained=62,
        duplicates_dropped=0,
        fleet=FleetMetrics(images=400, exit_accuracy=0.5, trunk_accuracy=0.75),
    )
    looks = [
        FLEET,
        replace(FLEET, phase=phase("train", 1, participants=3)),
        replace(FLEET, phase=phase("evaluate", 1, participants=3), committed=1),
        replace(FLEET, phase=phase("evaluate", 1, participants=3), committed=1, metrics=metrics),
        replace(FLEET, phase=phase("finished", 5), committed=5, metrics=metrics),
    ]
    found = [kinds_and_texts(events_of_fleet(before, after, NOW)) for before, after in pairwise(looks)]
    assert found == [
        [("round-opened", "round 1 of 5: training, 3 devices")],
        [
            ("round-committed", "round 1 of 5 committed"),
            ("round-opened", "round 1 of 5: evaluation, 3 devices"),
        ],
        [("round-evaluated", "round 1 evaluated: exit 50.0 %, trunk 75.0 %")],
        [
            ("round-committed", "rounds 2 to 5 of 5 committed"),
            ("run-finished", "the run is finished after 5 rounds"),
        ],
    ]


def test_new_run_is_an_event_and_counts_its_commits_anew() -> None:
    before = replace(FLEET, committed=5)
    assert FLEET.run is not None
    after = replace(FLEET, run=struct_with(FLEET.run, run="r2"), committed=1)
    assert [event.kind for event in events_of_fleet(before, after, NOW)] == ["run-began", "round-committed"]


def test_dismissal_and_quarantine_events_are_not_undone_by_the_last_will() -> None:
    def at(**status: Any) -> FleetSnapshot:
        return replace(FLEET, server=struct_with(SERVER, **status))

    named = at(dismissed=("pi-1",), quarantined=("pi-2",))
    found = [(event.kind, event.device) for event in events_of_fleet(FLEET, named, NOW)]
    assert found == [("dismissed", "pi-1"), ("quarantined", "pi-2")]
    back = [(event.kind, event.device) for event in events_of_fleet(named, FLEET, NOW)]
    assert back == [("readmitted", "pi-1"), ("out-of-quarantine", "pi-2")]
    dead = at(state="offline")
    assert [event.kind for event in events_of_fleet(named, dead, NOW)] == ["server-offline"]
    assert [event.kind for event in events_of_fleet(dead, named, NOW)] == ["server-online"]
    again = at(instance=2)
    (event,) = events_of_fleet(FLEET, again, NOW)
    assert event.text == "the server was started again"


def test_past_rounds_become_events_at_their_own_times() -> None:
    points = (HistoryPoint(round=1), HistoryPoint(round=2, time=NOW - 50, exit=0.5))
    (event,) = events_of_past(replace(FLEET, history=points))
    assert (event.time, event.text) == (NOW - 50, "round 2 evaluated: exit 50.0 %")


def test_event_text_from_the_wire_is_bounded_and_printable() -> None:
    model = ModelInService("1" * 64, "failed", reason="<script>\u202e\n" + "x" * 1000)
    (event,) = events_of_device(DEVICE, replace(DEVICE, model=model), NOW)
    assert len(event.text) == LONGEST_TEXT
    assert event.text.isprintable()
