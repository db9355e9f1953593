# SPDX-License-Identifier: Apache-2.0
"""Messages lost between devices and server: they are requested once, and the weights are the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from virtual_fleet import TOPICS, VirtualDevice, VirtualFleet

from splitee.mqtt.events import Overflow
from splitee.protocol import routes
from splitee.protocol.rounds import Ack, Features, Participation, RoundOpen, Sync
from splitee.protocol.routes import Route
from splitee_server.rounds.policy import Policy

THREE = ("pi-1", "pi-2", "pi-3")
Wanted = Callable[[Route, bytes], bool]


@pytest.fixture
def fleet(tmp_path: Path) -> VirtualFleet:
    return VirtualFleet(tmp_path / "server", *THREE)


def undisturbed(path: Path) -> str:
    return str(VirtualFleet(path / "undisturbed", *THREE).run()["weights_sha256"])


def lose_once(device: VirtualDevice, wanted: Wanted, then: Callable[[], None] = lambda: None) -> None:
    """The first message that is `wanted` gets lost, whereupon `then` happens."""
    publish, is_lost = device.publish, False

    def unreliable(route: Route, payload: bytes, seconds: float = 0.0) -> None:
        nonlocal is_lost
        if not is_lost and wanted(route, payload):
            is_lost = True
            then()
            return
        publish(route, payload, seconds)

    device.publish = unreliable  # type: ignore[method-assign]


def is_batch(number: int, step: int) -> Wanted:
    def wanted(route: Route, payload: bytes) -> bool:
        if route is not routes.FEATURES:
            return False
        batch = Features.decode(payload)
        return (batch.round, batch.phase, batch.step) == (number, "train", step)

    return wanted


def resends(fleet: VirtualFleet, device: str) -> list[Ack]:
    """The acknowledgements that request missing messages from a device."""
    payloads = fleet.port.payloads(routes.ACK.topic(TOPICS, device))
    return [ack for ack in map(Ack.decode, payloads) if ack.resend]


@pytest.mark.parametrize(
    "wanted",
    [is_batch(2, 1), lambda route, _payload: route is routes.ROUND_DONE],
    ids=["batch", "round-done"],
)
def test_message_lost_by_queue_overflow_is_requested_again_at_once(
    fleet: VirtualFleet, tmp_path: Path, caplog: pytest.LogCaptureFixture, wanted: Wanted
) -> None:
    lose_once(fleet.devices["pi-2"], wanted, lambda: fleet.port.happen(Overflow()))
    started = fleet.clock()
    report = fleet.run()
    assert fleet.clock() - started < 15
    assert report["weights_sha256"] == undisturbed(tmp_path)
    assert len(resends(fleet, "pi-2")) == 1
    lines = [line for line in caplog.messages if "messages were lost" in line]
    assert len(lines) == 1


def test_only_the_device_whose_message_was_lost_gets_a_resend_request(fleet: VirtualFleet) -> None:
    """The batches of pi-2 and pi-3 have arrived: the order waits for pi-1's."""
    lose_once(fleet.devices["pi-1"], is_batch(2, 1), lambda: fleet.port.happen(Overflow(), 1.0))
    fleet.run()
    assert (len(resends(fleet, "pi-1")), resends(fleet, "pi-2"), resends(fleet, "pi-3")) == (1, [], [])


def test_skipped_step_is_requested_again(fleet: VirtualFleet, tmp_path: Path) -> None:
    """A broker has dropped it silently; the device, whose window is not full, goes on."""
    device = fleet.devices["pi-2"]

    def go_on() -> None:
        assert fleet.phases[-1] == ("train", 2)
        device.publish(routes.FEATURES, device.features(opened[-1], 2))

    opened: list[RoundOpen] = []
    fleet.on_phase = opened.append
    lose_once(device, is_batch(2, 1), go_on)
    started = fleet.clock()
    assert fleet.run()["weights_sha256"] == undisturbed(tmp_path)
    assert fleet.clock() - started < 15
    assert [ack.step for ack in resends(fleet, "pi-2")] == [1]


def test_sync_of_a_device_whose_batches_wait_causes_no_resend_request(fleet: VirtualFleet) -> None:
    other, syncing = fleet.devices["pi-1"], fleet.devices["pi-2"]

    def send_sync(number: int, phase: str, step: int) -> None:
        if (number, phase, step) == (2, "train", 1):
            other.before_batch = lambda _round, _phase, _step: None
            syncing.publish(routes.SYNC, Sync(run="run", instance=1).encode(), 1.0)
            other.pause(2.0)

    other.before_batch = send_sync
    fleet.run()
    assert resends(fleet, "pi-2") == []
    assert len(resends(fleet, "pi-1")) == 1  # the server waited for it


def test_resend_requests_for_malformed_batches_are_paced(fleet: VirtualFleet) -> None:
    """A device whose batch is malformed three times, and that sends round-done nevertheless."""
    device = fleet.devices["pi-2"]
    publish, spoiled = device.publish, 0

    def spoil(route: Route, payload: bytes, seconds: float = 0.0) -> None:
        nonlocal spoiled
        if route is routes.FEATURES and is_batch(2, 1)(route, payload) and spoiled < 3:
            spoiled += 1
            payload = b"spoiled"
            fleet.port.happen(Overflow(), seconds)
            fleet.port.happen(Overflow(), seconds + 6)
        publish(route, payload, seconds)

    device.publish = spoil  # type: ignore[method-assign]
    started = fleet.clock()
    fleet.run()
    assert len(resends(fleet, "pi-2")) == 3
    assert fleet.clock() - started >= 10  # two pauses


def test_participations_are_published_before_the_phase_opens(fleet: VirtualFleet) -> None:
    fleet.run()
    topics = [sent.topic for sent in fleet.port.sent]
    parts = {routes.PARTICIPATION.topic(TOPICS, name) for name in THREE}
    opened = [number for number, topic in enumerate(topics) if topic == TOPICS.round]
    for number, payload in zip(opened, fleet.port.payloads(TOPICS.round), strict=True):
        if RoundOpen.decode(payload).phase in ("train", "evaluate"):
            assert set(topics[number - 3 : number]) == parts


def test_dropped_device_is_notified_and_broadcasts_name_no_device(tmp_path: Path) -> None:
    policy = Policy(devices=3, quorum=1, missing="skip", floor=5.0)
    fleet = VirtualFleet(tmp_path, *THREE, policy=policy)
    late = fleet.devices["pi-3"]
    late.before_batch = lambda number, phase, _step: late.pause() if (number, phase) == (2, "train") else None
    fleet.run()
    payloads = fleet.port.payloads(routes.PARTICIPATION.topic(TOPICS, "pi-3"))
    told = [Participation.decode(payload) for payload in payloads]
    assert [one.part is None for one in told if (one.round, one.phase) == (2, "train")] == [False, True]
    assert fleet.counted[2] == ["pi-1", "pi-2"]
    to_all = [*fleet.port.payloads(TOPICS.round), *fleet.port.payloads(TOPICS.commit)]
    assert not [payload for payload in to_all if b"pi-" in payload]


def test_memory_for_a_single_batch_gives_the_same_weights(
    tmp_path: Path,
) -> None:
    """A memory that holds one batch at a time: devices with a room of 0 wait for theirs."""
    fleet = VirtualFleet(tmp_path / "server", *THREE, policy=Policy(devices=3, quorum=1, memory=1500))
    rooms: dict[str, list[int]] = {name: [] for name in THREE}
    for name, device in fleet.devices.items():
        keep_to_the_room(device, rooms[name])
    assert fleet.run()["weights_sha256"] == undisturbed(tmp_path)
    assert {room for given in rooms.values() for room in given} == {0, 1}


def test_device_that_waits_for_a_window_is_not_late(tmp_path: Path) -> None:
    """The device with the window is away: it is dropped at the deadline, and the others get their turns."""
    policy = Policy(devices=3, quorum=1, missing="skip", floor=5.0, memory=1500)
    fleet = VirtualFleet(tmp_path, *THREE, policy=policy)
    for device in fleet.devices.values():
        keep_to_the_room(device, [])
    away = fleet.devices["pi-1"]
    away.before_batch = lambda number, phase, _step: away.pause() if (number, phase) == (2, "train") else None
    fleet.run()
    assert fleet.counted == {1: list(THREE), 2: ["pi-2", "pi-3"]}


def keep_to_the_room(device: VirtualDevice, rooms: list[int]) -> None:
    """As the product's outbox does: nothing is sent while the window is closed."""
    on_ack, on_round = device._on_ack, device._on_round

    def heed_ack(ack: Ack) -> None:
        rooms.append(ack.room)
        if ack.room or ack.step == getattr(device.part_in(device._opened), "steps", 0):  # type: ignore[arg-type]
            on_ack(ack)

    def heed_round(opened: RoundOpen) -> None:
        told = device._participation
        if told is not None and device.part_in(opened) is not None and not told.room:
            device._opened, device._sent = opened, 0
            return
        on_round(opened)

    device._on_ack, device._on_round = heed_ack, heed_round  # type: ignore[method-assign]
