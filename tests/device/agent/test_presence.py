# SPDX-License-Identifier: Apache-2.0
"""The status and the profile that a device reports to its fleet, and its status to systemd."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from fakes import FakeClock, FakePort
from msgspec.structs import replace

from splitee.errors import BrokerRefused, DataError, IdInUse
from splitee.protocol.fleet import DeviceStatus, Profile
from splitee.protocol.topics import Topics
from splitee.protocol.traffic import ByPurpose, Traffic
from splitee_device.agent.presence import Presence, offline
from splitee_device.machine.hardware import Fact

TOPICS = Topics("fleet")
STATUS, PROFILE = (TOPICS.device("pi-1", leaf) for leaf in ("status", "profile"))
INSTANCE = 5
OWN_STATUS = DeviceStatus(state="online", instance=INSTANCE)
OWN_PROFILE = Profile(
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


TRAFFIC = Traffic(up=ByPurpose(training=900, protocol=100, headers=70), down=ByPurpose(protocol=50))


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
        lambda: TRAFFIC,
        lambda: 300 << 20,
        lambda: 512 << 20,
    )


def statuses(port: FakePort) -> list[DeviceStatus]:
    assert all(sent.retain for sent in port.sent)
    return [DeviceStatus.decode(payload) for payload in port.payloads(STATUS)]


@pytest.mark.parametrize("degrees", [61.335, None])
def test_status_reports_progress_traffic_memory_and_temperature(
    port: FakePort, clock: FakeClock, degrees: float | None
) -> None:
    presence_on(port, clock, degrees, rejected=3).report("training", 2, 4, 9, 0.5, batches=7)
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
        traffic=TRAFFIC,
        memory=300 << 20,
        memory_limit=512 << 20,
    )


def test_status_reports_memory_use_of_this_process(port: FakePort, clock: FakeClock) -> None:
    presence = Presence(port, TOPICS, "pi-1", INSTANCE, clock, lambda: 0)
    presence.report("training", 1)
    [status] = statuses(port)
    assert status.memory is not None
    assert status.memory_limit is not None
    assert 1 << 20 < status.memory < status.memory_limit


@pytest.mark.parametrize(("written", "words"), [(12_345_678, "; 12.3 MB written"), (None, "")])
def test_status_reports_bytes_written_to_disk(
    port: FakePort, clock: FakeClock, systemd: socket.socket, written: int | None, words: str
) -> None:
    presence_on(port, clock, written=written).report("training", 2, 4, 9, 0.5)
    assert [status.written for status in statuses(port)] == [written]
    assert systemd.recv(1000).decode() == f"STATUS=round 2: training, step 4 of 9, loss 0.5000{words}"


def test_status_counts_disk_writes_of_this_process(port: FakePort, clock: FakeClock, tmp_path: Path) -> None:
    """As many as the system counts: on a file system in memory, none."""
    presence = Presence(port, TOPICS, "pi-1", INSTANCE, clock, lambda: 0, lambda: Fact(None, "a sensor"))
    counted = [counted_writes()]
    presence.report("training", 1)
    with (tmp_path / "file").open("wb") as file:
        file.write(bytes(1 << 20))
        file.flush()
        os.fsync(file.fileno())
    counted.append(counted_writes())
    presence.report("training", 2)
    counted.append(counted_writes())
    before, after = (status.written for status in statuses(port))
    assert before is not None and after is not None
    assert counted[0] <= before <= counted[1] <= after <= counted[2]


def counted_writes() -> int:
    """What proc(5) says of this process."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["write_bytes"])


def test_status_is_sent_once_a_second_and_at_once_on_a_change(
    port: FakePort, clock: FakeClock, presence: Presence
) -> None:
    for step in range(8):
        presence.report("training", 1, step)
        clock.advance(0.3)
    assert [status.step for status in statuses(port)] == [0, 4]
    presence.report("waiting", 1)
    presence.report("waiting", 2)
    assert [(status.doing, status.round) for status in statuses(port)][2:] == [("waiting", 1), ("waiting", 2)]


def test_device_in_a_large_fleet_sends_its_status_less_often(
    port: FakePort, presence: Presence, clock: FakeClock
) -> None:
    presence.set_fleet_size(500)
    for step in range(11):
        presence.report("training", 1, step, 11)
        clock.advance(1.0)
    assert [DeviceStatus.decode(payload).step for payload in port.payloads(STATUS)] == [0, 5, 10]


def test_device_in_a_large_fleet_delays_a_changed_status(
    port: FakePort, presence: Presence, clock: FakeClock
) -> None:
    presence.set_fleet_size(500)
    presence.report("training", 1)
    presence.report("waiting", 1)
    clock.advance(4.9)
    presence.publish_status_if_due()
    assert [status.doing for status in statuses(port)] == ["training"]
    clock.advance(0.2)
    presence.publish_status_if_due()
    assert [status.doing for status in statuses(port)] == ["training", "waiting"]


def test_last_will_is_an_offline_status_of_this_process() -> None:
    topic, payload = offline(TOPICS, "pi-1", INSTANCE)
    assert topic == STATUS
    assert DeviceStatus.decode(payload) == DeviceStatus(state="offline", instance=INSTANCE)


def test_profile_is_published_again_with_its_changes(port: FakePort, presence: Presence) -> None:
    presence.publish_profile()
    assert port.sent == []  # no profile yet
    presence.introduce(OWN_PROFILE)
    presence.change_profile(next_cut=3)
    presence.publish_profile()
    assert [Profile.decode(payload) for payload in port.payloads(PROFILE)] == [
        OWN_PROFILE,
        replace(OWN_PROFILE, next_cut=3),
        replace(OWN_PROFILE, next_cut=3),
    ]


def test_systemd_receives_the_status_as_text(systemd: socket.socket, presence: Presence) -> None:
    presence.report("training", 2, 4, 9, 0.51234)
    presence.report("waiting", 3)
    assert [systemd.recv(1000) for _ in range(2)] == [
        b"STATUS=round 2: training, step 4 of 9, loss 0.5123",
        b"STATUS=round 3: waiting",
    ]


def test_later_process_with_the_same_id_is_detected_after_the_own_status(presence: Presence) -> None:
    later = replace(OWN_STATUS, instance=INSTANCE + 1)
    presence.on_own_status(later)  # retained, from before the clock was set back
    presence.on_own_status(OWN_STATUS)
    presence.on_own_status(replace(later, state="offline"))
    with pytest.raises(IdInUse, match="another process has started with the id 'pi-1'"):
        presence.on_own_status(later)


def test_earlier_process_with_the_same_id_is_logged_once(
    port: FakePort, presence: Presence, caplog: pytest.LogCaptureFixture
) -> None:
    presence.on_own_status(OWN_STATUS)
    for state in ("online", "online", "offline"):
        presence.on_own_status(replace(OWN_STATUS, instance=INSTANCE - 1, state=state))
    [line] = caplog.messages
    assert "another process that started earlier has the id 'pi-1': it ends now; if it is on a copy" in line
    assert [status.state for status in statuses(port)] == ["online"]


@pytest.mark.parametrize("instance", [INSTANCE - 1, INSTANCE, INSTANCE + 1])
def test_offline_status_of_a_running_device_is_corrected(
    port: FakePort, presence: Presence, instance: int
) -> None:
    presence.on_own_status(OWN_STATUS)
    presence.on_own_status(replace(OWN_STATUS, state="offline", instance=instance))
    assert [status.state for status in statuses(port)] == ["online"]


def test_broker_refusal_raises_unless_the_own_status_was_received(port: FakePort, presence: Presence) -> None:
    presence.check_identity()
    port.refused = 1
    with pytest.raises(BrokerRefused, match="lets this client in, but not as 'pi-1'"):
        presence.check_identity()
    presence.on_own_status(OWN_STATUS)
    presence.check_identity()  # the broker accepts this device: it refused something else


def test_profile_that_is_too_large_for_the_broker_is_refused_in_one_line(clock: FakeClock) -> None:
    presence = presence_on(FakePort(clock, max_packet=130_048), clock)
    names = tuple(f"{number:0200}" for number in range(800))
    with pytest.raises(DataError, match=r"800 classes .* 16\d\.\d KB, .* at most 130\.0 KB"):
        presence.introduce(replace(OWN_PROFILE, class_names=names))
