# SPDX-License-Identifier: Apache-2.0
"""Admission: a device joins once one process of it is online and has sent its profile."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from splitee.errors import MalformedMessage, StateError
from splitee.protocol.fleet import DeviceStatus, Profile
from splitee.protocol.rounds import RoundDone
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import PROTOCOL
from splitee_server.members import admission as module
from splitee_server.members.admission import Admission, Admitted, ClassNamesChanged, Refusal
from splitee_server.members.members import Members

RUN = RunSpec(protocol=PROTOCOL, run="r", network="net", num_classes=2, rounds=5)


def profile(
    cut: int, next_cut: int = 0, instance: int = 1, names: tuple[str, ...] = ("a", "b"), samples: int = 64
) -> Profile:
    return Profile(
        protocol=PROTOCOL,
        instance=instance,
        version="0",
        cut=cut,
        class_names=names,
        train_samples=samples,
        held_out_samples=0,
        next_cut=next_cut,
    )


def online(instance: int = 1) -> DeviceStatus:
    return DeviceStatus(state="online", instance=instance)


def reason_of_refusal(found: list[Admitted | Refusal]) -> str:
    """The reason of the only refusal."""
    [refusal] = found
    assert isinstance(refusal, Refusal)
    return str(refusal)


@pytest.fixture
def members() -> Members:
    return Members()


@pytest.fixture
def admission(members: Members) -> Admission:
    return Admission(RUN, 4, members, devices=1, most_images=1000)


def test_device_joins_once_it_is_online_and_has_sent_its_profile(
    admission: Admission, members: Members
) -> None:
    assert admission.on_profile("pi-1", profile(1)) == []
    assert admission.on_status("pi-1", DeviceStatus(state="offline", instance=1)) == []
    [admitted] = admission.on_status("pi-1", online())
    assert isinstance(admitted, Admitted)
    assert (admitted.member.device, admitted.is_new) == ("pi-1", True)
    assert admission.on_status("pi-1", online()) == []  # a sign of life without a change
    assert members.class_names == ("a", "b")


def test_retained_profile_of_an_earlier_process_admits_no_device(admission: Admission) -> None:
    assert admission.on_profile("pi-1", profile(1, instance=1)) == []
    assert admission.on_status("pi-1", online(instance=2)) == []


def test_retained_profile_for_an_earlier_run_admits_no_device(admission: Admission, members: Members) -> None:
    """The process is alive: it has stayed for this run, and is still counting its present images."""
    admission.on_status("pi-1", online())
    assert admission.on_profile("pi-1", replace(profile(1, names=("x", "y")), run="of before")) == []
    assert not members.class_names
    [admitted] = admission.on_profile("pi-1", replace(profile(1, samples=96), run=RUN.run))
    assert isinstance(admitted, Admitted)
    assert (admitted.member.train_samples, members.class_names) == (96, ("a", "b"))


def test_process_may_send_its_profile_again(admission: Admission) -> None:
    admission.on_status("pi-1", online())
    admission.on_profile("pi-1", profile(1))
    [again] = admission.on_profile("pi-1", profile(1, next_cut=3))
    assert isinstance(again, Admitted)
    assert not again.is_new
    assert again.member.next_cut == 3


def test_moved_member_may_still_report_its_old_cut_but_no_other(
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
    assert "keep --cut 3" in reason_of_refusal(admission.on_profile("pi-1", profile(2, instance=2)))
    reason = reason_of_refusal(admission.on_profile("pi-1", profile(4, instance=2)))
    assert "is cut at 4; net can be cut at 1..3" in reason


def test_number_of_known_devices_that_never_join_is_bounded(
    admission: Admission, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KNOWN_DEVICES", 2)
    for device in ("pi-1", "pi-2"):
        admission.on_status(device, online())
    with pytest.raises(MalformedMessage, match="more than 2 devices"):
        admission.on_status("pi-3", online())


def join(admission: Admission, device: str, *names: str) -> list[tuple[str, bool]]:
    """The devices that are then admitted or refused, each with whether it is admitted."""
    admission.on_status(device, online())
    found = admission.on_profile(device, profile(1, names=names))
    return [(one.member.device, True) if isinstance(one, Admitted) else (one.device, False) for one in found]


def test_class_names_need_the_votes_of_more_than_half_of_the_devices(members: Members) -> None:
    admission = Admission(RUN, 4, members, devices=3, most_images=1000)
    assert join(admission, "evil", "x", "y") == []
    assert join(admission, "pi-1", "a", "b") == []
    assert "evil has [x, y]; pi-1 has [a, b]" in admission.vote.conflict
    assert members.class_names == ()
    assert join(admission, "pi-2", "a", "b") == [("evil", False), ("pi-1", True), ("pi-2", True)]
    assert members.class_names == ("a", "b")
    assert join(admission, "pi-3", "x", "y") == [("pi-3", False)]


def test_misspelt_class_is_named_in_the_refusal_and_accepted_once_corrected(members: Members) -> None:
    admission = Admission(RUN, 4, members, devices=2, most_images=1000)
    join(admission, "pi-1", "glass", "plastic")
    join(admission, "pi-2", "glass", "plastic")
    admission.on_status("pi-3", online())
    reason = reason_of_refusal(admission.on_profile("pi-3", profile(1, names=("glass", "platic"))))
    assert "pi-3 has the classes [glass, platic], the fleet [glass, plastic] (set by pi-1, pi-2)" in reason
    assert "only it has [platic], it lacks [plastic]" in reason
    reason = reason_of_refusal(admission.on_profile("pi-3", profile(1, names=("plastic", "glass"))))
    assert "they are in another order" in reason
    admission.on_status("pi-3", online(instance=2))
    [admitted] = admission.on_profile("pi-3", profile(1, instance=2, names=("glass", "plastic")))
    assert isinstance(admitted, Admitted)


def test_two_devices_must_agree_on_class_names_and_may_change_theirs(members: Members) -> None:
    admission = Admission(RUN, 4, members, devices=2, most_images=1000)
    assert join(admission, "pi-1", "a", "b") == []
    assert join(admission, "pi-2", "b", "a") == []
    assert join(admission, "pi-2", "a", "b") == [("pi-1", True), ("pi-2", True)]


def test_class_names_may_change_before_the_first_commit_but_not_after(
    members: Members,
) -> None:
    committed = [0]
    admission = Admission(RUN, 4, members, devices=3, most_images=1000, committed=lambda: committed[0])
    for device, last in (("pi-1", "x"), ("pi-2", "x"), ("pi-3", "b")):
        join(admission, device, "a", last)
    admission.on_status("pi-1", online(instance=2))
    with pytest.raises(ClassNamesChanged, match=r"are \[a, b\] from now on, before \[a, x\]") as changed:
        admission.on_profile("pi-1", profile(1, instance=2, names=("a", "b")))
    refusal, admitted = changed.value.found
    assert isinstance(refusal, Refusal)
    assert isinstance(admitted, Admitted)
    assert (refusal.device, refusal.instance, admitted.member.device) == ("pi-2", 1, "pi-1")
    assert [member.device for member in members] == ["pi-1"]
    committed[0] = 1
    assert join(admission, "pi-3", "a", "x") == [("pi-3", False)]
    assert join(admission, "pi-2", "a", "x") == [("pi-2", False)]
    assert members.class_names == ("a", "b")


def test_refusal_of_too_many_classes_names_the_num_classes_flag(members: Members) -> None:
    """The device alone has set the fleet's class names, so that no other folder is wrong."""
    admission = Admission(RUN, 4, members, devices=1, most_images=1000)
    join(admission, "pi-1", "a", "b")
    reason = reason_of_refusal(admission.on_profile("pi-1", profile(1, names=("a", "b", "c"))))
    assert reason == "pi-1 has 3 classes, the run 2: start the server with another --num-classes"


def test_class_names_of_the_operator_hold_from_the_start() -> None:
    admission = Admission(RUN, 4, Members(("a", "b")), devices=3, most_images=1000)
    assert join(admission, "evil", "x", "y") == [("evil", False)]
    assert join(admission, "pi-1", "a", "b") == [("pi-1", True)]


@pytest.mark.parametrize("samples", [1001, 1 << 61, 1 << 62])
def test_device_with_more_images_than_allowed_is_refused(admission: Admission, samples: int) -> None:
    admission.on_status("pi-1", online())
    reason = reason_of_refusal(admission.on_profile("pi-1", profile(1, samples=samples)))
    assert f"says that it has {samples} images; at most 1000 are taken" in reason


def test_device_stays_in_quarantine_until_it_is_readmitted(members: Members) -> None:
    for device in ("pi-1", "pi-2"):
        members.admit(device, profile(1))
    members.quarantine("pi-1")
    after = Members()
    after.load(members.state(), ("a", "b"))
    assert after.quarantined() == ("pi-1",)
    after.readmit(["pi-9"])
    assert after.quarantined() == ("pi-1",)
    after.readmit(["all"])
    assert after.quarantined() == ()


def test_run_does_not_resume_with_other_class_names() -> None:
    with pytest.raises(StateError, match=r"has the classes \[a, b\], not \[x, y\]"):
        Members(("x", "y")).load([], ("a", "b"))


def test_totals_never_exceed_the_largest_number_of_a_message(members: Members) -> None:
    members.admit("pi-1", profile(1))
    done = RoundDone(
        run="r", round=1, attempt=1, digest="0" * 64, batches=1 << 62, bytes=1 << 62, loss=1.0, accuracy=1.0,
        seconds=1.0,
    )  # fmt: skip
    for _ in range(2):
        members.end_round(done, "pi-1", 3, 1.0)
    totals = members["pi-1"].totals
    assert (totals.batches, totals.published) == (6, 1 << 62)


def test_cuts_and_commit_of_a_member_are_restored_from_the_saved_state(members: Members) -> None:
    members.admit("pi-1", profile(2, next_cut=3))
    members.start_from("pi-1", 4, "0" * 64)
    after = Members()
    after.load(members.state(), ("a", "b"))
    member = after["pi-1"]
    assert (member.cut, member.next_cut, member.committed, member.digest) == (2, 3, 4, "0" * 64)
    assert not member.online
