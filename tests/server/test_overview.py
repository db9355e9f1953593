# SPDX-License-Identifier: Apache-2.0
"""What a server publishes for viewers, as they combine it: on a fake port, over whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import Sent
from virtual_fleet import TOPICS, VirtualDevice, VirtualFleet, stages

from splitee.cli.signals import Stopped
from splitee.mqtt.events import Message
from splitee.protocol import routes
from splitee.protocol.fleet_view import DeviceView, FleetSnapshot, FleetView
from splitee.protocol.overview import MOST_CURVES, Timing
from splitee.protocol.routes import LARGEST_WHOLE
from splitee_server.rounds.policy import Policy

NOW = 2_000_000_000.0
NAMES = ("pi-1", "pi-2")


def viewer_snapshot(fleet: VirtualFleet) -> FleetSnapshot:
    """What a viewer sees that gets only the retained messages."""
    view = FleetView(TOPICS.fleet)
    retained = {sent.topic: sent for sent in fleet.port.sent if sent.retain}
    for device in fleet.devices.values():
        profile = Message(routes.PROFILE.topic(TOPICS, device.name), device.profile.encode(), retained=True)
        view.take(profile, NOW)
    for sent in retained.values():
        view.take(Message(sent.topic, sent.payload, retained=True), NOW)
    return view.snapshot()


def device_of(snapshot: FleetSnapshot, name: str) -> DeviceView:
    return next(device for device in snapshot.devices if device.id == name)


def timings(fleet: VirtualFleet) -> list[Timing]:
    return [Timing.decode(payload) for payload in fleet.port.payloads(routes.TIMING.topic(TOPICS))]


def pauses(device: VirtualDevice, seconds: float, rounds: set[int]) -> None:
    """The device sends nothing for so long in the middle of the training of these rounds."""

    def before_batch(number: int, phase: str, step: int) -> None:
        if (phase, step) == ("train", 1) and number in rounds:
            rounds.discard(number)
            device.pause(seconds)

    device.before_batch = before_batch


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> VirtualFleet:
    fleet = VirtualFleet(tmp_path_factory.mktemp("fleet") / "server", *NAMES, rounds=3)
    fleet.run()
    return fleet


def test_stages_of_the_network_are_published(finished: VirtualFleet) -> None:
    told = viewer_snapshot(finished).network_stages
    assert [(stage.name, stage.features, stage.parameters) for stage in told] == [
        (stage.name, stage.feature_shape, stage.parameters) for stage in stages()
    ]


def test_each_evaluated_round_is_a_point_of_fleet_and_device_curves(
    finished: VirtualFleet,
) -> None:
    snapshot, metrics = viewer_snapshot(finished), finished.metrics
    assert [point.round for point in snapshot.history] == [1, 2, 3]
    for point, figures in zip(snapshot.history, metrics, strict=True):
        assert point.adaptive == pytest.approx(figures.fleet.adaptive_accuracy, abs=1e-4)
        assert point.time == figures.time > 1e9
        for name in NAMES:
            own = {each.round: each for each in device_of(snapshot, name).history}[point.round]
            assert own.trunk == pytest.approx(figures.devices[name].trunk_accuracy, abs=1e-4)


def test_baselines_contain_the_majority_share(finished: VirtualFleet) -> None:
    fleet, found = finished.metrics[-1].fleet, viewer_snapshot(finished).baselines
    assert found is not None
    most = max(recall.images for recall in fleet.class_recalls)
    assert found.majority == pytest.approx(most / fleet.images, abs=1e-4)
    assert found.alone is None


def test_confusion_is_counted_for_the_fleet_and_each_device(finished: VirtualFleet) -> None:
    snapshot, metrics = viewer_snapshot(finished), finished.metrics[-1]
    matrices = [snapshot.confusion, *(device_of(snapshot, name).confusion for name in NAMES)]
    figures = [(metrics.fleet, metrics.fleet.images)]
    figures += [(metrics.devices[name], metrics.devices[name].held_out_samples) for name in NAMES]  # type: ignore[misc]
    for matrix, (accuracies, images) in zip(matrices, figures, strict=True):
        assert matrix is not None
        assert sum(map(sum, matrix.counts)) == images
        right = sum(row[index] for index, row in enumerate(matrix.counts))
        assert right / images == pytest.approx(accuracies.adaptive_accuracy)


def test_estimated_end_is_published_from_the_second_round_on(
    tmp_path: Path,
) -> None:
    fleet = VirtualFleet(tmp_path / "server", *NAMES, rounds=4)
    pauses(fleet.devices["pi-1"], 60, rounds={1, 2, 3, 4})
    fleet.run()
    told = [timing for timing in timings(fleet) if timing.phase == "train"]
    assert all(timing.estimate is None for timing in told if timing.round == 1)
    first = next(timing for timing in told if timing.round == 2)
    assert first.estimate is not None
    assert first.estimate - first.opened == pytest.approx(3 * 60, abs=10)
    end = timings(fleet)[-1]
    assert (end.phase, end.estimate, end.waiting) == ("finished", None, ())


def test_estimated_end_considers_the_stop_without_a_better_round(
    tmp_path: Path,
) -> None:
    policy = Policy(devices=2, quorum=1, stop_after=2)
    fleet = VirtualFleet(tmp_path / "server", *NAMES, policy=policy, rounds=9)
    for device in fleet.devices.values():
        device.good_rounds = frozenset({2})
    pauses(fleet.devices["pi-1"], 60, rounds=set(range(1, 10)))
    assert fleet.run()["rounds"] == 4
    opened: dict[int, Timing] = {}
    for timing in timings(fleet):
        if timing.phase == "train":
            opened.setdefault(timing.round, timing)
    left = {number: t.estimate - t.opened for number, t in opened.items() if t.estimate is not None}
    assert left == {
        2: pytest.approx(2 * 60, abs=10),  # rounds 2 and 3, if neither is better than the first
        3: pytest.approx(2 * 60, abs=10),  # the second was
        4: pytest.approx(60, abs=10),
    }


def test_timing_states_since_when_a_device_is_waited_for(tmp_path: Path) -> None:
    fleet = VirtualFleet(tmp_path / "server", *NAMES)
    pauses(fleet.devices["pi-2"], 100, rounds={1})
    fleet.run()
    waits = [timing for timing in timings(fleet) if timing.phase == "train" and timing.waiting]
    (since,) = {waited.since for timing in waits for waited in timing.waiting if waited.device == "pi-2"}
    assert since == pytest.approx(waits[0].opened, abs=2)
    assert len(timings(fleet)) < 30, "nothing is said again while it has not changed"


def test_restarted_server_publishes_the_same_overview(tmp_path: Path) -> None:
    first = VirtualFleet(tmp_path / "server", *NAMES, rounds=3)
    first.on_phase = lambda opened: setattr(first, "stopped", (opened.round, opened.phase) == (3, "train"))
    with pytest.raises(Stopped):
        first.run()
    before = viewer_snapshot(first)
    second = VirtualFleet(tmp_path / "server", *NAMES, rounds=3, instance=200)
    second.on_phase = lambda _opened: setattr(second, "stopped", True)
    with pytest.raises(Stopped):
        second.run()
    after = viewer_snapshot(second)
    assert [point.round for point in after.history] == [1, 2]
    for name in ("history", "baselines", "seconds", "confusion", "network_stages"):
        assert getattr(after, name) == getattr(before, name)
    for device in NAMES:
        assert device_of(after, device).history == device_of(before, device).history
        assert device_of(after, device).confusion == device_of(before, device).confusion is not None
    assert after.estimate is not None


def test_state_of_an_earlier_release_without_times_is_resumed(tmp_path: Path) -> None:
    """It has neither times nor their breakdown, and its evaluation no confusion of devices."""
    first = VirtualFleet(tmp_path / "server", *NAMES, rounds=2)
    first.run()
    history, evaluation = (tmp_path / "server" / name for name in ("history.jsonl", "evaluation.json"))
    lines = [line.rpartition(b',"time":')[0] + b"}" for line in history.read_bytes().splitlines()]
    assert b"spent" not in b"".join(lines)
    history.write_bytes(b"".join(line + b"\n" for line in lines))
    evaluation.write_bytes(b'{"run":"run","round":2}')
    second = VirtualFleet(tmp_path / "server", *NAMES, rounds=3, instance=200)
    second.run()
    points = viewer_snapshot(second).history
    assert [(point.round, point.time > 0) for point in points] == [(1, False), (2, False), (3, True)]


def test_large_fleet_has_no_device_curves(tmp_path: Path) -> None:
    names = [f"pi-{index}" for index in range(MOST_CURVES + 1)]
    fleet = VirtualFleet(tmp_path / "server", *names, rounds=1)
    fleet.run()
    assert not [
        sent for sent in fleet.port.sent if sent.topic.endswith("/history") and "devices" in sent.topic
    ]
    assert len(viewer_snapshot(fleet).history) == 1


def test_viewer_messages_fit_any_broker_and_are_sent_once_per_round(finished: VirtualFleet) -> None:
    watched = [route for route in routes.ROUTES if route.sender == "server" and route.readers == ("viewer",)]
    told = [
        sent
        for route in watched
        if route is not routes.TIMING
        for sent in finished.port.sent
        if sent.topic == route.topic(TOPICS, "pi-1")
    ]
    assert max(len(sent.payload) for sent in told) < LARGEST_WHOLE
    assert all(count == 3 for count in _counts(told, routes.HISTORY, routes.DEVICE_HISTORY))
    assert _counts(told, routes.NETWORK) == [1]


def _counts(told: list[Sent], *of: routes.Route) -> list[int]:
    return [sum(sent.topic == route.topic(TOPICS, "pi-1") for sent in told) for route in of]
