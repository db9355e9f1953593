# SPDX-License-Identifier: Apache-2.0
"""Dismissed devices: the run goes on without them, to the same weights after a restart."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import Sent
from msgspec.structs import replace
from virtual_fleet import CLASSES, TOPICS, VirtualFleet

from splitee.cli.signals import Stopped
from splitee.durable import StateDirectory
from splitee.errors import ExitCode, StateError
from splitee.mqtt.events import Connected
from splitee.protocol import routes
from splitee.protocol.fleet import DeviceStatus, Dismissal, DismissalReply, Profile, ServerStatus
from splitee.protocol.inference import Serving
from splitee.protocol.retained import retained_topics
from splitee.protocol.rounds import RoundOpen
from splitee.protocol.run_spec import RunSpec
from splitee_server.monitoring.observer import Observer
from splitee_server.rounds.checkpoints import Checkpoints
from splitee_server.rounds.policy import Policy
from splitee_server.rounds.progress import Progress

THREE = ("pi-1", "pi-2", "pi-3")
DISMISS = routes.DISMISS.topic(TOPICS)


def dismiss(fleet: VirtualFleet, *devices: str, undo: bool = False) -> None:
    """Deliver a request of `splitee dismiss`."""
    fleet.port.deliver(DISMISS, Dismissal(request=7, devices=devices, undo=undo).encode())


def replies(fleet: VirtualFleet) -> list[DismissalReply]:
    return [DismissalReply.decode(payload) for payload in fleet.port.payloads(routes.DISMISSED.topic(TOPICS))]


def statuses(fleet: VirtualFleet) -> list[ServerStatus]:
    return [ServerStatus.decode(payload) for payload in fleet.port.payloads(TOPICS.server_status)]


def request(*devices: str) -> bytes:
    return Dismissal(request=7, devices=devices).encode()


def on_sent(fleet: VirtualFleet, then: Callable[[Sent], None]) -> None:
    """Do something after each publication of the server."""
    hear = fleet.port.on_sent

    def heard(sent: Sent) -> None:
        hear(sent)
        then(sent)

    fleet.port.on_sent = heard


def fall_silent(fleet: VirtualFleet, name: str, at: tuple[int, str, int], then: Callable[[], None]) -> None:
    """A device sends nothing more but its will; then `then` is called."""
    device = fleet.devices[name]

    def before_batch(number: int, phase: str, step: int) -> None:
        if (number, phase, step) == at and not device.silent:
            device.pause()
            device.publish(routes.STATUS, DeviceStatus(state="offline", instance=1).encode())
            then()

    device.before_batch = before_batch


WHEN = {
    "round 1": (1, "train", 1),
    "round 2": (2, "train", 2),
    "statistics": (1, "statistics", 1),
    "evaluation": (1, "evaluate", 0),
}
RUNS = {
    "sequential": {"strategy": "sequential", "client_averaging": "none"},
    "averaging": {"strategy": "averaging", "client_averaging": "layerwise", "statistics_batches": 2},
    "settled": {"normalize": "fleet", "client_averaging": "same-cut"},
}
CASES = [(run, when) for run in RUNS for when in WHEN if run == "averaging" or when != "statistics"]


@pytest.mark.parametrize(("run", "when"), CASES)
def test_server_killed_after_a_dismissal_ends_with_the_same_weights(
    tmp_path: Path, run: str, when: str
) -> None:
    settings: dict[str, Any] = RUNS[run]
    number, phase, _ = WHEN[when]
    fleet = VirtualFleet(tmp_path / "left alone", *THREE, rounds=3, **settings)
    fall_silent(fleet, "pi-3", WHEN[when], lambda: dismiss(fleet, "pi-3"))
    report = fleet.run()
    assert fleet.counted[3] == ["pi-1", "pi-2"]
    rounds = number - 1 if phase == "train" else number
    found = {device["id"]: device["batches"] for device in report["devices"]}
    assert found == {"pi-1": 9, "pi-2": 9} | ({"pi-3": 3 * rounds} if rounds else {})  # of committed rounds
    assert report["dismissed"] == ["pi-3"]

    killed = VirtualFleet(tmp_path / "killed", *THREE, rounds=3, **settings)
    fall_silent(killed, "pi-3", WHEN[when], lambda: dismiss(killed, "pi-3"))
    on_sent(killed, lambda _sent: setattr(killed, "stopped", bool(replies(killed))))
    with pytest.raises(Stopped):
        killed.run()
    after = VirtualFleet(tmp_path / "killed", "pi-1", "pi-2", instance=200, rounds=3, **settings)
    assert after.run()["weights_sha256"] == report["weights_sha256"]


def test_device_dismissed_before_the_first_commit_has_no_effect_on_weights(tmp_path: Path) -> None:
    fleet = VirtualFleet(tmp_path / "server", *THREE)
    fall_silent(fleet, "pi-3", (1, "train", 2), lambda: dismiss(fleet, "pi-3"))
    others = VirtualFleet(tmp_path / "others", "pi-1", "pi-2")
    assert fleet.run()["weights_sha256"] == others.run()["weights_sha256"]
    assert fleet.phases[:4] == [("gather", 0), ("train", 1), ("gather", 0), ("train", 1)]


def test_run_starts_without_a_device_dismissed_before_it_joined(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The server knows it only by its retained status."""
    caplog.set_level(logging.INFO)
    fleet = VirtualFleet(tmp_path / "server", "pi-1", "pi-2", policy=Policy(devices=3, quorum=1))
    gone = DeviceStatus(state="offline", instance=1).encode()
    fleet.port.deliver(routes.STATUS.topic(TOPICS, "pi-3"), gone, retained=True)
    fleet.on_phase = lambda _opened: (
        None if replies(fleet) else fleet.port.later(100, DISMISS, request("pi-3"))
    )
    fleet.run()
    assert fleet.counted[2] == ["pi-1", "pi-2"]
    assert "dismissed: pi-3; round 1 waits for 2 of the 3 devices (--devices)" in caplog.text
    assert "round 0 of 2: gathering devices: waiting for 1 more device (2 online)" in caplog.text


def test_restarted_server_continues_without_a_dismissed_device(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It waits for a device of an earlier round that does not return."""
    caplog.set_level(logging.INFO)
    first = VirtualFleet(tmp_path / "server", *THREE)
    first.on_phase = lambda opened: setattr(first, "stopped", opened.round == 2)
    with pytest.raises(Stopped):
        first.run()
    second = VirtualFleet(tmp_path / "server", "pi-1", "pi-2", instance=200)
    second.port.later(100, DISMISS, request("pi-3"))
    second.run()
    assert second.counted[2] == ["pi-1", "pi-2"]
    assert [reply.message for reply in replies(second)] == [
        "dismissed: pi-3; the run goes on with pi-1, pi-2"
    ]
    assert second.phases[:2] == [("gather", 1), ("train", 2)], "nothing that is under way depends on it"
    waited = [status.waiting_for for status in statuses(second)]
    assert waited.index(("pi-3",)) < waited.index(())
    assert not any("pi-3" in names for names in waited[waited.index(()) :])
    third = VirtualFleet(tmp_path / "server", "pi-1", "pi-2", instance=300, rounds=3)
    third.run()
    assert "dismissed: pi-3; the run goes on with pi-1, pi-2" in caplog.text


def test_only_a_dismissed_devices_topics_are_cleared_also_on_reconnection(
    tmp_path: Path,
) -> None:
    fleet = VirtualFleet(tmp_path / "server", *THREE)
    fall_silent(fleet, "pi-3", (2, "train", 1), lambda: dismiss(fleet, "pi-3"))
    own = set(retained_topics(TOPICS, "pi-3"))
    fleet.on_phase = lambda opened: (
        fleet.port.happen(Connected(fresh=True)) if (opened.phase, opened.round) == ("evaluate", 2) else None
    )
    fleet.run()
    cleared = [sent.topic for sent in fleet.port.sent if sent.retain and not sent.payload]
    assert set(cleared) == own
    assert {route for route in routes.ROUTES if route.topic(TOPICS, "pi-3") in own} == {
        routes.STATUS,
        routes.PROFILE,
        routes.FIGURES,
        routes.DEVICE_HISTORY,
        routes.SERVING,
        routes.PREDICTED_STATE,
        routes.DEVICE_UPDATE,
        routes.ASSIGNMENT,
        routes.PARTICIPATION,
        routes.MODEL_OFFER,
        routes.MODEL_REPORT,
        routes.SOFTWARE_OFFER,
        routes.SOFTWARE_REPORT,
    }
    assert all(cleared.count(topic) == 2 for topic in own)
    told = [sent for sent in fleet.port.sent if sent.topic in own]
    assert not any(sent.payload for sent in told[-len(own) :]), "nothing is retained after that"


class Watch(Observer):
    def __init__(self) -> None:
        self.dismissed: list[str] = []
        self.predicting: list[str] = []
        self.seen: list[tuple[str, ...]] = []

    def on_dismissed(self, device: str) -> None:
        self.dismissed.append(device)

    def on_predicting(self, device: str, profile: Profile | None) -> None:
        self.predicting.append(device)

    def tick(self, progress: Callable[[], Progress]) -> None:
        self.seen.append(tuple(standing.device for standing in progress().run.devices))


def test_observers_do_not_see_a_dismissed_device(tmp_path: Path) -> None:
    watch = Watch()
    fleet = VirtualFleet(tmp_path / "server", *THREE, observers=[watch])
    fall_silent(fleet, "pi-3", (2, "train", 1), lambda: dismiss(fleet, "pi-3"))
    fleet.run()
    assert watch.dismissed == ["pi-3"]
    assert THREE in watch.seen
    assert watch.seen[-1] == ("pi-1", "pi-2")
    assert statuses(fleet)[-1].dismissed == ("pi-3",)


def test_dismissed_device_and_its_later_processes_are_refused(tmp_path: Path) -> None:
    fleet = VirtualFleet(tmp_path / "server", *THREE, rounds=3)
    device = fleet.devices["pi-3"]
    fall_silent(fleet, "pi-3", (2, "train", 1), lambda: dismiss(fleet, "pi-3"))

    def join(opened: RoundOpen) -> None:
        if (opened.phase, opened.round) == ("train", 3):
            device.join(instance=5)
            device.publish(routes.STATUS, DeviceStatus(state="offline", instance=5).encode())  # its farewell
            device.publish(routes.STATUS, b"")  # the server's own clearing comes back to it
            device.publish(routes.STATUS, b"")

    fleet.on_phase = join
    fleet.run()
    assert {(error.code, error.fatal) for error in device.errors} == {(ExitCode.DISMISSED, True)}
    assert [error.instance for error in device.errors] == [1, 5, 5]
    assert "`splitee dismiss --undo pi-3` lets it in again" in device.errors[0].message
    assert fleet.counted[3] == ["pi-1", "pi-2"]
    status = routes.STATUS.topic(TOPICS, "pi-3")
    assert fleet.port.payloads(status) == [b""] * 3, "upon dismissal, when it came, and when it left"
    assert fleet.rejected == {("pi-3", "dismissed"): 3}


def test_serving_topics_of_a_dismissed_device_are_cleared_again(tmp_path: Path) -> None:
    fleet = VirtualFleet(tmp_path / "server", *THREE, rounds=3)
    fall_silent(fleet, "pi-3", (2, "train", 1), lambda: dismiss(fleet, "pi-3"))
    serving, state = (route.topic(TOPICS, "pi-3") for route in (routes.SERVING, routes.PREDICTED_STATE))

    def predict(opened: RoundOpen) -> None:
        if (opened.phase, opened.round) == ("train", 3):
            fleet.port.deliver(serving, Serving(state="online", instance=7).encode())

    fleet.on_phase = predict
    fleet.run()
    assert fleet.port.payloads(serving) == fleet.port.payloads(state) == [b"", b""], (
        "upon dismissal, and then"
    )


def test_observers_are_notified_of_devices_that_predict(tmp_path: Path) -> None:
    watch = Watch()
    fleet = VirtualFleet(tmp_path / "server", *THREE, observers=[watch])
    for device, state in (("pi-9", "online"), ("pi-8", "offline")):
        message = Serving(state=state, instance=7).encode()
        fleet.port.deliver(routes.SERVING.topic(TOPICS, device), message, retained=True)
    fleet.run()
    assert watch.predicting == ["pi-9"]


def test_device_let_in_again_takes_part_in_the_next_round(tmp_path: Path) -> None:
    fleet = VirtualFleet(tmp_path / "server", *THREE, rounds=4)
    device = fleet.devices["pi-3"]
    fall_silent(fleet, "pi-3", (2, "train", 1), lambda: dismiss(fleet, "pi-3"))

    def let_in(opened: RoundOpen) -> None:
        if (opened.phase, opened.round) == ("train", 3):
            dismiss(fleet, "pi-3", undo=True)
            device.pause(0)
            device.before_batch = lambda *_: None
            device.join(instance=5)

    fleet.on_phase = let_in
    report = fleet.run()
    assert fleet.counted[4] == list(THREE)
    assert replies(fleet)[-1].message == "let in again: pi-3; the run goes on with pi-1, pi-2, pi-3"
    assert report["dismissed"] == []
    assert fleet.checkpoints.dismissed() == []
    assert device.errors[-1].instance == 1, "its later process is told nothing"


def test_device_let_in_again_is_not_waited_for_before_it_is_back(tmp_path: Path) -> None:
    """Nothing under way depends on it when it is dismissed: it holds out no images."""
    policy = Policy(devices=3, quorum=1, missing="skip")
    fleet = VirtualFleet(tmp_path / "server", *THREE, policy=policy, rounds=3)
    device = fleet.devices["pi-3"]
    device.profile = replace(device.profile, held_out_samples=0)

    def on_phase(opened: RoundOpen) -> None:
        if opened.phase == "evaluate" and opened.round < 3:
            device.pause()
            dismiss(fleet, "pi-3", undo=opened.round == 2)

    fleet.on_phase = on_phase
    fleet.run()
    assert [reply.code for reply in replies(fleet)] == [ExitCode.OK] * 2
    assert [number for _, number, _ in device.parts] == [1]


@pytest.mark.parametrize("undo", [False, True])
def test_dismissal_of_an_unknown_device_is_refused_as_a_whole(tmp_path: Path, undo: bool) -> None:
    fleet = VirtualFleet(tmp_path / "server", *THREE)
    fleet.on_phase = lambda opened: (
        dismiss(fleet, "pi-3", "cam-9", undo=undo) if (opened.phase, opened.round) == ("train", 1) else None
    )
    report = fleet.run()
    (reply,) = replies(fleet)
    unknown, known = ("cam-9, pi-3", "dismissed: none") if undo else ("cam-9", "known: pi-1, pi-2, pi-3")
    assert (reply.request, reply.code) == (7, ExitCode.CONFIG)
    assert reply.message == f"{unknown}: no such device; {known}; nothing is changed"
    assert report["weights_sha256"] == VirtualFleet(tmp_path / "right", *THREE).run()["weights_sha256"]


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b'["pi 1"]', b'["\xff"]'])
def test_damaged_list_of_dismissed_devices_is_an_error_of_the_state(tmp_path: Path, content: bytes) -> None:
    directory = StateDirectory(tmp_path)
    (tmp_path / "dismissed.json").write_bytes(content)
    with pytest.raises(StateError, match=r"dismissed\.json: expected a list of devices"):
        Checkpoints(directory).dismissed()
    directory.close()


def test_dismissal_that_cannot_be_stored_is_refused(tmp_path: Path) -> None:
    fleet = VirtualFleet(tmp_path / "server", *THREE)
    (tmp_path / "server" / "dismissed.json").mkdir()
    fleet.on_phase = lambda opened: dismiss(fleet, "pi-3") if opened.phase == "train" else None
    with pytest.raises(StateError):
        fleet.checkpoints.dismissed()
    fleet.run()
    assert [reply.code for reply in replies(fleet)] == [ExitCode.STATE] * 2
    assert fleet.counted[2] == list(THREE)


def test_fleet_whose_devices_are_all_dismissed_waits_for_a_new_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    fleet = VirtualFleet(tmp_path / "server", *THREE, "late", policy=Policy(devices=3, quorum=1))
    late = fleet.devices["late"]
    late.join = lambda **_changed: None  # type: ignore[method-assign]

    def dismiss_all(opened: RoundOpen) -> None:
        if (opened.phase, opened.round) == ("train", 2) and not replies(fleet):
            dismiss(fleet, *THREE)
            late.publish(routes.STATUS, DeviceStatus(state="online", instance=1).encode(), 1000)
            late.publish(routes.PROFILE, late.profile.encode(), 1000)

    fleet.on_phase = dismiss_all
    fleet.run()
    assert fleet.counted[2] == ["late"]
    line = "round 1 of 2: gathering devices; no device is left: waiting for one to join"
    assert line in [status.doing for status in statuses(fleet)]
    assert 3 <= caplog.text.count(line) <= 10  # in 1,000 s, less and less often


@pytest.mark.parametrize("committed", [0, 1])
def test_quorum_does_not_require_dismissed_devices(tmp_path: Path, committed: int) -> None:
    policy = Policy(devices=3, quorum=3, missing="skip", floor=60.0)
    fleet = VirtualFleet(tmp_path / "server", *THREE, policy=policy)
    fall_silent(
        fleet, "pi-3", (committed + 1, "train", 1), lambda: fleet.port.later(5000, DISMISS, request("pi-3"))
    )
    fleet.run()
    assert fleet.counted[2] == ["pi-1", "pi-2"]


def test_remaining_device_decides_the_class_names_after_a_dismissal(tmp_path: Path) -> None:
    fleet = VirtualFleet(tmp_path / "server", "pi-1", "pi-2")
    fleet.devices["pi-2"].profile = replace(fleet.devices["pi-2"].profile, class_names=("a", "b", "x"))
    fleet.port.later(100, DISMISS, request("pi-2"))
    fleet.run()
    assert fleet.counted[2] == ["pi-1"]
    assert RunSpec.decode(fleet.port.payloads(TOPICS.run)[-1]).class_names == CLASSES


def test_class_names_set_by_dismissed_devices_are_replaced(tmp_path: Path) -> None:
    """The two that had misspelt a class are gone for good; the third was refused, and comes again."""
    fleet = VirtualFleet(tmp_path / "server", *THREE)
    for name in ("pi-1", "pi-2"):
        fleet.devices[name].profile = replace(fleet.devices[name].profile, class_names=("a", "b", "x"))
    fleet.port.later(100, DISMISS, request("pi-1", "pi-2"))
    third = fleet.devices["pi-3"]
    third.publish(routes.STATUS, DeviceStatus(state="online", instance=2).encode(), 200)
    third.publish(routes.PROFILE, replace(third.profile, instance=2).encode(), 200)
    fleet.run()
    assert [error.code for error in third.errors] == [ExitCode.REJECTED]
    assert fleet.counted[2] == ["pi-3"]
    assert RunSpec.decode(fleet.port.payloads(TOPICS.run)[-1]).class_names == CLASSES


def test_quarantine_persists_when_a_dismissal_restarts_the_round(tmp_path: Path) -> None:
    policy = Policy(devices=4, quorum=1, quarantine_after=3)
    fleet = VirtualFleet(tmp_path / "server", *THREE, "evil", policy=policy, rounds=3)

    def poison(opened: RoundOpen) -> None:
        if (opened.phase, opened.round) == ("evaluate", 1):
            for _ in range(3):
                fleet.devices["evil"].publish(routes.FEATURES, b"\xc1")

    fleet.on_phase = poison
    fall_silent(fleet, "pi-3", (2, "train", 1), lambda: dismiss(fleet, "pi-3"))
    fleet.run()
    assert fleet.counted[3] == ["pi-1", "pi-2"]
    assert statuses(fleet)[-1].quarantined == ("evil",)


def test_malformed_oversized_and_retained_dismissals_are_rejected(tmp_path: Path) -> None:
    fleet = VirtualFleet(tmp_path / "server", *THREE)

    def harm(opened: RoundOpen) -> None:
        if (opened.phase, opened.round) == ("train", 1):
            for payload in (
                b"",
                b"{}",
                b"[" * 5000,
                b'{"request":1,"devices":[]}',
                b'{"request":1,"devices":["+"]}',
            ):
                fleet.port.deliver(DISMISS, payload)
            many = ",".join(f'"d{number}"' for number in range(1001))
            fleet.port.deliver(DISMISS, f'{{"request":1,"devices":[{many}]}}'.encode())
            fleet.port.deliver(DISMISS, request("pi-3"), retained=True)  # it would be taken at each start

    fleet.on_phase = harm
    fleet.run()
    assert replies(fleet) == []
    assert fleet.rejected == {("server", "malformed"): 6, ("server", "retained"): 1}
    assert fleet.counted[2] == list(THREE)
