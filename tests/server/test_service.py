# SPDX-License-Identifier: Apache-2.0
"""The service with a fake port and clock: devices that return, move or are refused, and what is counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import Sent
from msgspec.structs import replace
from virtual_fleet import TOPICS, VirtualFleet

from splitee.cli.signals import Stopped
from splitee.errors import ExitCode
from splitee.mqtt.events import Connected, Event
from splitee.protocol import routes
from splitee.protocol.fleet import DeviceStatus, ServerStatus
from splitee.protocol.rounds import Ack, Assignment, Commit, Participant, RoundDone, RoundOpen, Weights
from splitee.protocol.routes import Route
from splitee.protocol.run_spec import RunSpec
from splitee_server.rounds.best_round import BestRound
from splitee_server.rounds.policy import Policy

THREE = ("pi-1", "pi-2", "pi-3")


@pytest.fixture
def fleet(tmp_path: Path) -> VirtualFleet:
    return VirtualFleet(tmp_path / "server", *THREE)


def undisturbed(path: Path) -> str:
    """The weights of the same run without disturbances."""
    return str(VirtualFleet(path / "undisturbed", *THREE).run()["weights_sha256"])


def test_run_goes_through_its_phases_and_commits_every_round(fleet: VirtualFleet) -> None:
    report = fleet.run()
    assert fleet.phases == [
        ("gather", 0), ("train", 1), ("evaluate", 1), ("train", 2), ("evaluate", 2), ("finished", 2),
    ]  # fmt: skip
    assert fleet.counted == {
        1: list(THREE),
        2: list(THREE),
    }
    assert (report["batches_trained"], report["batches_published"], report["rejected"]) == (18, 18, 0)
    assert [metrics.round for metrics in fleet.metrics] == [1, 2]
    assert all(values.trunk_accuracy is not None for values in fleet.metrics[-1].devices.values())


def test_device_returning_with_other_images_ends_the_round_as_opened(
    fleet: VirtualFleet,
) -> None:
    device = fleet.devices["pi-2"]

    def come_back(number: int, phase: str, step: int) -> None:
        if (number, phase, step) == (1, "train", 1) and device.profile.instance == 1:
            device.join(instance=2, train_samples=40)

    device.before_batch = come_back
    fleet.run()
    steps = {number: part.steps for phase, number, part in device.parts if phase == "train"}
    assert steps == {1: 3, 2: 10}
    assert fleet.counted[1] == list(THREE)


def test_device_returning_with_other_images_learns_from_no_predictions_for_the_earlier_ones(
    tmp_path: Path,
) -> None:
    """When it returns, the first of its three batches waits at the server; 14 images make three, too."""
    fleet = VirtualFleet(tmp_path / "server", *THREE, rounds=3, soft_labels=0.5)
    device = fleet.devices["pi-2"]
    device.is_ahead = True

    def come_back(number: int, phase: str, step: int) -> None:
        if (number, phase, step) == (1, "train", 1) and device.profile.instance == 1:
            device.join(instance=2, train_samples=14)

    device.before_batch = come_back
    fleet.run()
    parts = {number: part for phase, number, part in device.parts if phase == "train"}
    assert {number: part.steps for number, part in parts.items()} == {1: 3, 2: 3, 3: 3}
    assert {number: part.soft_labels for number, part in parts.items()} == {1: 0, 2: 0, 3: 2}


def test_late_joiner_starts_from_the_average_of_its_cut(tmp_path: Path) -> None:
    fleet = VirtualFleet(tmp_path, *THREE, policy=Policy(devices=2, quorum=1), rounds=3)
    late = fleet.devices["pi-3"]
    join = late.join
    late.join = lambda **_changed: None  # type: ignore[method-assign]
    fleet.on_phase = lambda opened: join() if (opened.phase, opened.round) == ("evaluate", 1) else None
    fleet.run()
    assert [number for phase, number, _ in late.parts if phase == "train"] == [2, 3]
    assert late.assignments[0].held
    assert late.assignments[0].committed == 1
    assert late.assignments[0].digest == fleet.devices["pi-1"].assignments[-3].digest


def test_assignment_of_a_late_joiner_with_a_new_cut_matches_its_rounds(
    tmp_path: Path,
) -> None:
    """It joins in a round's training; statistics are taken before the next one."""
    settings = {"client_averaging": "layerwise", "statistics_batches": 2}
    fleet = VirtualFleet(tmp_path, *THREE, policy=Policy(devices=2, quorum=1), rounds=3, **settings)
    late = fleet.devices["pi-3"]
    join = late.join
    late.join = lambda **_changed: None  # type: ignore[method-assign]
    told: list[tuple[Assignment, Participant]] = []

    def on_phase(opened: RoundOpen) -> None:
        if (opened.phase, opened.round) == ("train", 1):
            join(cut=3)
        elif opened.phase == "train" and late.assignments:
            part = late.part_in(opened)
            assert part is not None
            told.append((late.assignments[-1], part))

    fleet.on_phase = on_phase
    fleet.run()
    assert [(given.committed, given.fresh) for given, _ in told] == [
        (part.base, part.fresh) for _, part in told
    ]
    assert [part.base for _, part in told] == [0, 2]


def test_device_moves_to_its_requested_cut_after_a_commit(fleet: VirtualFleet) -> None:
    device = fleet.devices["pi-1"]
    fleet.on_phase = lambda opened: device.join(next_cut=3) if opened.phase == "gather" else None
    fleet.run()
    cuts = [(number, part.cut) for phase, number, part in device.parts if phase == "train"]
    assert cuts == [(1, 1), (2, 3)]
    assert device.assignments[-1].held


@pytest.mark.parametrize(
    ("changed", "code", "says"),
    [
        ({"protocol": 2}, ExitCode.VERSION, "speaks protocol 2"),
        ({"cut": 4}, ExitCode.REJECTED, "can be cut at 1..3"),
        ({"class_names": ("a", "b")}, ExitCode.REJECTED, "has the classes [a, b], the fleet [a, b, c]"),
        ({"class_names": tuple("abcd")}, ExitCode.REJECTED, "(set by pi-1, pi-2): only it has [d]; every"),
    ],
)
def test_incompatible_device_is_refused(
    tmp_path: Path, changed: dict[str, object], code: ExitCode, says: str
) -> None:
    fleet = VirtualFleet(tmp_path, *THREE, policy=Policy(devices=2, quorum=1))
    misfit = fleet.devices["pi-3"]
    join = misfit.join
    misfit.join = lambda **_changed: join(instance=7, **changed)  # type: ignore[method-assign]
    fleet.run()
    (error,) = misfit.errors
    assert (error.code, error.fatal, error.instance) == (code, True, 7)
    assert says in error.message
    assert misfit.parts == []


def test_device_with_corrected_classes_joins_before_the_first_commit(tmp_path: Path) -> None:
    fleet = VirtualFleet(tmp_path, *THREE, policy=Policy(devices=2, quorum=1))
    misspelt = fleet.devices["pi-3"]
    join = misspelt.join
    misspelt.join = lambda **_changed: join(class_names=("a", "b", "x"))  # type: ignore[method-assign]

    def correct(opened: RoundOpen) -> None:
        if (opened.phase, opened.round) == ("train", 1):
            join(instance=2, class_names=("a", "b", "c"))

    fleet.on_phase = correct
    fleet.run()
    assert misspelt.errors
    assert all("only it has [x], it lacks [c]" in error.message for error in misspelt.errors)
    assert [number for phase, number, _ in misspelt.parts if phase == "train"] == [2]


def test_later_of_two_processes_with_one_device_id_is_used(fleet: VirtualFleet) -> None:
    """The last messages of the earlier process, such as its will, change nothing."""
    device = fleet.devices["pi-2"]

    def twin(opened: RoundOpen) -> None:
        if opened.phase == "train" and opened.round == 1:
            device.join(instance=2)
            device.publish(routes.STATUS, DeviceStatus(state="offline", instance=1).encode())

    fleet.on_phase = twin
    fleet.run()
    statuses = map(ServerStatus.decode, fleet.port.payloads(TOPICS.server_status))
    assert not any("pi-2" in status.waiting_for and "gather" in status.doing for status in statuses)
    assert device.assignments[-1].instance == 2
    assert fleet.counted[2] == list(THREE)


READ = tuple(
    route
    for route in routes.ROUTES
    if route.sender == "device" and "server" in route.readers and route is not routes.PREDICTIONS
)


@pytest.mark.parametrize("phase", ["gather", "train", "evaluate"])
def test_malformed_messages_of_every_route_are_counted_and_ignored(tmp_path: Path, phase: str) -> None:
    fleet = VirtualFleet(tmp_path / "server", *THREE, policy=Policy(3, 1, quarantine_after=0))

    def harm(opened: RoundOpen) -> None:
        if opened.phase == phase and opened.round <= 1:
            for route in READ:
                for payload in (b"", b"\xc1", b"{", b"\x80", b"[" * 5000):
                    fleet.devices["pi-3"].publish(route, payload)
            fleet.port.deliver(TOPICS.server_claim, b"x")

    fleet.on_phase = harm
    report = fleet.run()
    assert report["weights_sha256"] == undisturbed(tmp_path)
    assert report["rejected"] == 5 * len(READ) + 1
    unknown = 15 if phase == "gather" and ("pi-3", "unknown") in fleet.rejected else 0
    assert fleet.rejected.get(("pi-3", "malformed"), 0) + unknown == 5 * len(READ)
    assert len(fleet.devices["pi-3"].errors) == 10  # the first few are reported; all are counted


def test_foreign_oversized_and_unknown_messages_are_counted_by_reason(
    fleet: VirtualFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("splitee.protocol.encoding.MAX_JSON", 5000)

    def send(opened: RoundOpen) -> None:
        if opened.phase == "train" and opened.round == 1:
            device = fleet.devices["pi-1"]
            device.publish(routes.WEIGHTS, Weights(run="another", round=1, tensors={}).encode())
            device.publish(routes.PROFILE, b" " * 5001)
            fleet.port.deliver(routes.FEATURES.topic(TOPICS, "pi-9"), b"x")

    fleet.on_phase = send
    fleet.run()
    assert fleet.rejected == {("pi-1", "foreign"): 1, ("pi-1", "oversized"): 1, ("pi-9", "unknown"): 1}


def test_duplicate_batch_is_trained_once(fleet: VirtualFleet, tmp_path: Path) -> None:
    device = fleet.devices["pi-1"]
    seen: list[bytes] = []

    def repeat(number: int, phase: str, step: int) -> None:
        assert device._opened is not None
        if phase == "train" and step:
            seen.append(device.features(device._opened, step - 1))
            device.publish(routes.FEATURES, seen[-1])

    device.before_batch = repeat
    report = fleet.run()
    assert report["duplicates_dropped"] == len(seen) == 4
    assert report["weights_sha256"] == undisturbed(tmp_path)


def test_duplicate_batch_is_acknowledged_again(fleet: VirtualFleet) -> None:
    """The first acknowledgement may have been lost."""
    device, hear = fleet.devices["pi-1"], fleet.port.on_sent
    lost: list[Ack] = []

    def lose(sent: Sent) -> None:
        if sent.topic == routes.ACK.topic(TOPICS, "pi-1") and not lost:
            lost.append(Ack.decode(sent.payload))
            assert device._opened is not None
            device.publish(routes.FEATURES, device.features(device._opened, lost[0].step - 1), 1.0)
        else:
            hear(sent)

    fleet.port.on_sent = lose
    assert fleet.run()["duplicates_dropped"] == len(lost) == 1


def test_round_done_with_a_wrong_digest_is_rejected_and_the_weights_requested_again(
    fleet: VirtualFleet, tmp_path: Path
) -> None:
    device = fleet.devices["pi-1"]
    publish, lies = device.publish, []

    def lie_once(route: Route, payload: bytes, seconds: float = 0.0) -> None:
        if route is routes.ROUND_DONE and not lies:
            lies.append(replace(RoundDone.decode(payload), digest="0" * 64).encode())
            publish(route, lies[0])
        publish(route, payload, seconds)

    device.publish = lie_once  # type: ignore[method-assign]
    assert fleet.run()["weights_sha256"] == undisturbed(tmp_path)
    assert fleet.rejected == {("pi-1", "malformed"): 1}
    assert resends(fleet, "pi-1") == [(1, 3)]


def resends(fleet: VirtualFleet, device: str) -> list[tuple[int, int]]:
    """Round and step of each request to send again what follows that step."""
    acks = map(Ack.decode, fleet.port.payloads(routes.ACK.topic(TOPICS, device)))
    return [(ack.round, ack.step) for ack in acks if ack.resend]


def test_lost_weights_are_requested_again_before_the_round_ends(fleet: VirtualFleet, tmp_path: Path) -> None:
    device = fleet.devices["pi-1"]
    publish, lost = device.publish, []

    def lose_once(route: Route, payload: bytes, seconds: float = 0.0) -> None:
        if route is routes.WEIGHTS and not lost:
            lost.append(payload)
        else:
            publish(route, payload, seconds)

    device.publish = lose_once  # type: ignore[method-assign]
    assert fleet.run()["weights_sha256"] == undisturbed(tmp_path)
    assert (len(lost), fleet.rejected) == (1, {})
    assert resends(fleet, "pi-1") == [(1, 3)]


def test_commit_is_published_only_after_it_is_saved(fleet: VirtualFleet) -> None:
    hear = fleet.port.on_sent
    saved: list[tuple[int, int]] = []

    def look(sent: Sent) -> None:
        if sent.topic == TOPICS.commit:
            saved.append((Commit.decode(sent.payload).round, fleet.checkpoints.newest()))
        elif sent.topic == routes.ASSIGNMENT.topic(TOPICS, "pi-1"):
            saved.append((Assignment.decode(sent.payload).committed, fleet.checkpoints.newest()))
        hear(sent)

    fleet.port.on_sent = look
    fleet.run()
    assert {told for told, _ in saved} == {0, 1, 2}
    assert all(told <= newest for told, newest in saved), saved


def test_all_retained_messages_are_published_again_after_a_reconnection(fleet: VirtualFleet) -> None:
    port, receive, marks = fleet.port, fleet.port.receive, list[int]()

    def reconnect(opened: RoundOpen) -> None:
        if (opened.phase, opened.round) == ("train", 2):
            port.happen(Connected(fresh=True))

    def received(timeout: float | None) -> Event | None:
        """Marks what was published before the reconnection, and then because of it."""
        if len(marks) == 1:
            marks.append(len(port.sent))
        event = receive(timeout)
        if isinstance(event, Connected):
            marks.append(len(port.sent))
        return event

    fleet.on_phase, port.receive = reconnect, received  # type: ignore[method-assign]
    fleet.run()
    before, again = (
        {sent.topic: sent.payload for sent in part if sent.retain and sent.topic != TOPICS.server_status}
        for part in (port.sent[: marks[0]], port.sent[marks[0] : marks[1]])
    )
    assert again == before
    assert {TOPICS.run, TOPICS.round, TOPICS.commit, TOPICS.metrics} < before.keys()
    assert {
        route.topic(TOPICS, device) for route in (routes.ASSIGNMENT, routes.PARTICIPATION) for device in THREE
    } < before.keys()
    assert fleet.counted[2] == list(THREE)


@pytest.mark.parametrize("strategy", ["sequential", "averaging", "data-parallel"])
def test_stopped_run_resumes_from_its_commit_to_the_same_weights(tmp_path: Path, strategy: str) -> None:
    whole = VirtualFleet(tmp_path / "whole", *THREE, strategy=strategy).run()
    first = VirtualFleet(tmp_path / "server", *THREE, strategy=strategy)

    def stop(number: int, _phase: str, step: int) -> None:
        first.stopped = (number, step) == (2, 1)

    first.devices["pi-1"].before_batch = stop
    with pytest.raises(Stopped):
        first.run()
    second = VirtualFleet(tmp_path / "server", *THREE, strategy=strategy, instance=101)
    assert second.run()["weights_sha256"] == whole["weights_sha256"]
    assert second.phases[0] == ("gather", 1)


def test_restarted_server_has_no_soft_labels_for_a_device_with_other_images(tmp_path: Path) -> None:
    first = VirtualFleet(tmp_path, *THREE, rounds=3, soft_labels=1.0)

    def stop(opened: RoundOpen) -> None:
        first.stopped = opened.round == 2

    first.on_phase = stop
    with pytest.raises(Stopped):
        first.run()
    second = VirtualFleet(tmp_path, *THREE, instance=101, rounds=3, soft_labels=1.0)
    changed = second.devices["pi-2"]
    changed.profile = replace(changed.profile, train_samples=13)  # as many batches as before
    second.run()
    used = {
        name: {number: part.soft_labels for phase, number, part in device.parts if phase == "train"}
        for name, device in second.devices.items()
    }
    assert used == {"pi-1": {2: 1, 3: 2}, "pi-2": {2: 0, 3: 2}, "pi-3": {2: 1, 3: 2}}


def test_finished_run_needs_no_device(tmp_path: Path) -> None:
    VirtualFleet(tmp_path, *THREE).run()
    again = VirtualFleet(tmp_path, instance=101)
    again.run()
    assert again.phases == [("finished", 2)]


def test_finished_run_continues_when_given_more_rounds(
    tmp_path: Path,
) -> None:
    VirtualFleet(tmp_path, *THREE).run()
    again = VirtualFleet(tmp_path, *THREE, instance=101, rounds=3)
    order: list[str] = []
    hear = again.port.on_sent

    def listen(sent: Sent) -> None:
        order.append(sent.topic)
        hear(sent)

    again.port.on_sent = listen
    report = again.run()
    assert again.phases == [("gather", 2), ("train", 3), ("evaluate", 3), ("finished", 3)]
    assert order.index(TOPICS.round) < order.index(TOPICS.run)  # else devices take it for finished
    assert (report["rounds"], report["batches_trained"]) == (3, 27)
    assert RunSpec.decode(again.port.payloads(TOPICS.run)[0]).rounds == 3


def test_run_ends_without_a_better_round_and_releases_the_best_commit(
    tmp_path: Path,
) -> None:
    def begin(instance: int, stop_after: int) -> VirtualFleet:
        policy = Policy(devices=3, quorum=1, stop_after=stop_after)
        fleet = VirtualFleet(tmp_path, *THREE, policy=policy, instance=instance, rounds=9)
        for device in fleet.devices.values():
            device.good_rounds = frozenset({2})
        return fleet

    first = begin(100, stop_after=3)

    def stop(opened: RoundOpen) -> None:
        first.stopped = (opened.phase, opened.round) == ("train", 4)

    first.on_phase = stop
    with pytest.raises(Stopped):
        first.run()
    second = begin(101, stop_after=3)
    report = second.run()
    assert (report["rounds"], report["fleet"]["adaptive_accuracy"]) == (5, 0.0)
    best = report["best"]
    assert (best["round"], best["images"]) == (2, 12)
    assert (best["exit_accuracy"], best["adaptive_accuracy"], best["offload_share"]) == (1.0, 1.0, 0.0)
    released, _ = BestRound(second.checkpoints, 3).release(5)
    assert (released.round, second.checkpoints.serving_round(), second.checkpoints.newest()) == (2, 2, 5)
    assert sorted(released.clients) == list(THREE)
    again = begin(102, stop_after=3)
    assert again.run()["rounds"] == 5
    assert again.phases == [("finished", 5)]
    assert begin(103, stop_after=0).run()["rounds"] == 9


def test_each_commit_of_a_releasing_run_contains_the_client_networks(tmp_path: Path) -> None:
    fleet = VirtualFleet(tmp_path, *THREE, rounds=3, release=True, client_averaging="none")

    def stop(opened: RoundOpen) -> None:
        fleet.stopped = opened.round == 2

    fleet.on_phase = stop
    with pytest.raises(Stopped):
        fleet.run()
    stored = fleet.checkpoints.load()
    assert stored is not None
    assert (stored.round, sorted(stored.clients)) == (1, list(THREE))
