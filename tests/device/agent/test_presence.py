# SPDX-License-Identifier: Apache-2.0
"""What a device says of itself, to its fleet and to systemd."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from fakes import FakeClock, FakePort
from msgspec.structs import replace

from splitee.errors import BrokerRefused, IdInUse
from splitee.protocol.fleet import DeviceStatus, Profile
from splitee.protocol.topics import Topics
from splitee.protocol.traffic import ByPurpose, Traffic
from splitee_device.agent.presence import Presence, offline
from splitee_device.machine.hardware import Fact

TOPICS = Topics("fleet")
STATUS, PROFILE = (TOPICS.device("pi-1", leaf) for leaf in ("status", "profile"))
INSTANCE = 5
OWN = DeviceStatus(state="online", instance=INSTANCE)
WHO = Profile(
    protocol=1,
    instance=INSTANCE,
    version="1",
    cut=2,
    class_names=("a", "b"),
    train_samples=4,
    held_out_samples=2,
)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def port(clock: FakeClock) -> FakePort:
    return FakePort(clock)


@pytest.fixture
def presence(port: FakePort, clock: FakeClock) -> Presence:
    return presence_on(port, clock)


MOVED = Traffic(up=ByPurpose(training=900, protocol=100, headers=70), down=ByPurpose(protocol=50))


def presence_on(
    port: FakePort,
    clock: FakeClock,
    degrees: float | None = None,
    rejected: int = 0,
    written: int | None = None,
) -> Presence:
    thermometer = Fact(degrees, "a sensor")
    return Presence(
        port,
        TOPICS,
        "pi-1",
        INSTANCE,
        clock,
        lambda: rejected,
        lambda: thermometer,
        lambda: written,
        lambda: MOVED,
        lambda: 300 << 20,
        lambda: 512 << 20,
    )


def statuses(port: FakePort) -> list[DeviceStatus]:
    assert all(sent.retain for sent in port.sent)
    return [DeviceStatus.decode(payload) for payload in port.payloads(STATUS)]


@pytest.mark.parametrize("degrees", [61.335, None])
def test_the_status_has_the_temperature_where_there_is_a_sensor(
    port: FakePort, clock: FakeClock, degrees: float | None
) -> None:
    presence_on(port, clock, degrees, rejected=3).say("training", 2, 4, 9, 0.5, batches=7)
    [status] = statuses(port)
    assert replace(status, time=0.0) == DeviceStatus(
        state="online",
        instance=INSTANCE,
        doing="training",
        round=2,
        step=4,
        steps=9,
        loss=0.5,
        batches=7,
        bytes=1000,
        rejected=3,
        temperature=degrees,
        traffic=MOVED,
        memory=300 << 20,
        memory_limit=512 << 20,
    )


def test_what_this_process_takes_of_its_memory_is_said(port: FakePort, clock: FakeClock) -> None:
    presence = Presence(port, TOPICS, "pi-1", INSTANCE, clock, lambda: 0)
    presence.say("training", 1)
    [status] = statuses(port)
    assert status.memory is not None
    assert status.memory_limit is not None
    assert 1 << 20 < status.memory < status.memory_limit


@pytest.mark.parametrize(("written", "words"), [(12_345_678, "; 12.3 MB written"), (None, "")])
def test_the_status_has_what_was_written_to_the_disk(
    port: FakePort, clock: FakeClock, systemd: socket.socket, written: int | None, words: str
) -> None:
    presence_on(port, clock, written=written).say("training", 2, 4, 9, 0.5)
    assert [status.written for status in statuses(port)] == [written]
    assert systemd.recv(1000).decode() == f"STATUS=round 2: training, step 4 of 9, loss 0.5000{words}"


def test_what_this_process_writes_is_counted(port: FakePort, clock: FakeClock, tmp_path: Path) -> None:
    """As far as the system says: on a disk in memory it is nothing."""
    presence = Presence(port, TOPICS, "pi-1", INSTANCE, clock, lambda: 0, lambda: Fact(None, "a sensor"))
    presence.say("training", 1)
    with (tmp_path / "file").open("wb") as file:
        file.write(bytes(1 << 20))
        file.flush()
        os.fsync(file.fileno())
    presence.say("training", 2)
    before, after = (status.written for status in statuses(port))
    if before is None or after is None or after == before:
        pytest.skip("the system does not count what is written here")
    assert after - before >= 1 << 20


def test_the_status_comes_once_a_second_and_at_once_on_a_change(
    port: FakePort, clock: FakeClock, presence: Presence
) -> None:
    for step in range(8):
        presence.say("training", 1, step)
        clock.advance(0.3)
    assert [status.step for status in statuses(port)] == [0, 4]
    presence.say("waiting", 1)
    presence.say("waiting", 2)
    assert [(status.doing, status.round) for status in statuses(port)][2:] == [("waiting", 1), ("waiting", 2)]


def test_of_many_devices_each_says_its_status_more_seldom(
    port: FakePort, presence: Presence, clock: FakeClock
) -> None:
    presence.share(500)
    for step in range(11):
        presence.say("training", 1, step, 11)
        clock.advance(1.0)
    assert [DeviceStatus.decode(said).step for said in port.payloads(STATUS)] == [0, 5, 10]


def test_of_many_devices_a_change_waits_for_its_turn(
    port: FakePort, presence: Presence, clock: FakeClock
) -> None:
    presence.share(500)
    presence.say("training", 1)
    presence.say("waiting", 1)
    clock.advance(4.9)
    presence.say_again()
    assert [status.doing for status in statuses(port)] == ["training"]
    clock.advance(0.2)
    presence.say_again()
    assert [status.doing for status in statuses(port)] == ["training", "waiting"]


def test_the_farewell_is_an_offline_status_of_this_process() -> None:
    topic, payload = offline(TOPICS, "pi-1", INSTANCE)
    assert topic == STATUS
    assert DeviceStatus.decode(payload) == DeviceStatus(state="offline", instance=INSTANCE)


def test_the_profile_is_said_again_with_what_has_changed(port: FakePort, presence: Presence) -> None:
    presence.publish_profile()
    assert port.sent == []  # there is none yet
    presence.introduce(WHO)
    presence.change_profile(next_cut=3)
    presence.publish_profile()
    assert [Profile.decode(payload) for payload in port.payloads(PROFILE)] == [
        WHO,
        replace(WHO, next_cut=3),
        replace(WHO, next_cut=3),
    ]


def test_systemd_hears_the_status_in_words(systemd: socket.socket, presence: Presence) -> None:
    presence.say("training", 2, 4, 9, 0.51234)
    presence.say("waiting", 3)
    assert [systemd.recv(1000) for _ in range(2)] == [
        b"STATUS=round 2: training, step 4 of 9, loss 0.5123",
        b"STATUS=round 3: waiting",
    ]


def test_a_twin_that_started_later_is_found_once_the_own_status_was_seen(presence: Presence) -> None:
    later = replace(OWN, instance=INSTANCE + 1)
    presence.on_own_status(later)  # retained from before, by a clock that was set back
    presence.on_own_status(OWN)
    presence.on_own_status(replace(later, state="offline"))
    with pytest.raises(IdInUse, match="another process has started with the id 'pi-1'"):
        presence.on_own_status(later)


def test_of_a_twin_that_started_earlier_people_hear_once(
    port: FakePort, presence: Presence, caplog: pytest.LogCaptureFixture
) -> None:
    presence.on_own_status(OWN)
    for state in ("online", "online", "offline"):
        presence.on_own_status(replace(OWN, instance=INSTANCE - 1, state=state))
    [line] = caplog.messages
    assert "another process that started earlier has the id 'pi-1': it ends now; if it is on a copy" in line
    assert [status.state for status in statuses(port)] == ["online"]


@pytest.mark.parametrize("instance", [INSTANCE - 1, INSTANCE, INSTANCE + 1])
def test_a_will_that_says_this_device_is_gone_is_contradicted(
    port: FakePort, presence: Presence, instance: int
) -> None:
    presence.on_own_status(OWN)
    presence.on_own_status(replace(OWN, state="offline", instance=instance))
    assert [status.state for status in statuses(port)] == ["online"]


def test_a_broker_that_refuses_what_is_this_devices_own(port: FakePort, presence: Presence) -> None:
    presence.check_identity()
    port.refused = 1
    with pytest.raises(BrokerRefused, match="lets this client in, but not as 'pi-1'"):
        presence.check_identity()
    presence.on_own_status(OWN)
    presence.check_identity()  # it takes this device; what it refused was something else
