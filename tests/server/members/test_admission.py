"""Who may join: a device that is online and has said what it is, once both are of the same process."""

from __future__ import annotations

import pytest

from splitee.errors import MalformedMessage
from splitee.protocol.fleet import DeviceStatus, Profile
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import PROTOCOL
from splitee_server.members import admission as module
from splitee_server.members.admission import Admission, Refusal
from splitee_server.members.members import Members

RUN = RunSpec(protocol=PROTOCOL, run="r", network="net", num_classes=2, rounds=5)


def profile(cut: int, next_cut: int = 0, instance: int = 1) -> Profile:
    return Profile(
        protocol=PROTOCOL,
        instance=instance,
        version="0",
        cut=cut,
        class_names=("a", "b"),
        train_samples=64,
        held_out_samples=0,
        next_cut=next_cut,
    )


def online(instance: int = 1) -> DeviceStatus:
    return DeviceStatus(state="online", instance=instance)


@pytest.fixture
def members() -> Members:
    return Members()


@pytest.fixture
def admission(members: Members) -> Admission:
    return Admission(RUN, 4, members)


def test_a_device_joins_once_it_is_online_and_has_sent_its_profile(
    admission: Admission, members: Members
) -> None:
    assert admission.on_profile("pi-1", profile(1)) is None
    assert admission.on_status("pi-1", DeviceStatus(state="offline", instance=1)) is None
    admitted = admission.on_status("pi-1", online())
    assert admitted is not None
    assert (admitted.member.device, admitted.is_new) == ("pi-1", True)
    assert admission.on_status("pi-1", online()) is None  # alive, but nothing new
    assert members.class_names == ("a", "b")


def test_a_retained_profile_of_a_process_that_is_gone_lets_nobody_in(admission: Admission) -> None:
    assert admission.on_profile("pi-1", profile(1, instance=1)) is None
    assert admission.on_status("pi-1", online(instance=2)) is None


def test_the_same_process_may_send_its_profile_again(admission: Admission) -> None:
    admission.on_status("pi-1", online())
    admission.on_profile("pi-1", profile(1))
    again = admission.on_profile("pi-1", profile(1, next_cut=3))
    assert again is not None
    assert not again.is_new
    assert again.member.next_cut == 3


def test_a_member_asks_moves_and_may_still_speak_of_its_old_cut(
    admission: Admission, members: Members
) -> None:
    admission.on_status("pi-1", online())
    admission.on_profile("pi-1", profile(1, next_cut=3))
    members.move("pi-1", 3)
    member = members["pi-1"]
    assert (member.cut, member.next_cut) == (3, 0)
    admission.on_status("pi-1", online(instance=2))
    admission.on_profile("pi-1", profile(1, next_cut=3, instance=2))  # killed before it followed
    assert (member.cut, member.next_cut) == (3, 0)
    admission.on_profile("pi-1", profile(3, next_cut=3, instance=2))
    assert member.next_cut == 0
    with pytest.raises(Refusal, match="keep --cut 3"):
        admission.on_profile("pi-1", profile(2, instance=2))
    with pytest.raises(Refusal, match=r"is cut at 4; net can be cut at 1\.\.3"):
        admission.on_profile("pi-1", profile(4, instance=2))


def test_devices_that_never_join_are_remembered_in_bounds(
    admission: Admission, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KNOWN_DEVICES", 2)
    for device in ("pi-1", "pi-2"):
        admission.on_status(device, online())
    with pytest.raises(MalformedMessage, match="more than 2 devices"):
        admission.on_status("pi-3", online())


def test_what_counts_outlives_the_process(members: Members) -> None:
    members.admit("pi-1", profile(2, next_cut=3))
    members.start_from("pi-1", 4, "0" * 64)
    after = Members()
    after.load(members.state(), ("a", "b"))
    member = after["pi-1"]
    assert (member.cut, member.next_cut, member.committed, member.digest) == (2, 3, 4, "0" * 64)
    assert not member.online
