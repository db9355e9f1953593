# SPDX-License-Identifier: Apache-2.0
"""Who may join: a device that is online and has said what it is, once both are of the same process."""

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


def refused(found: list[Admitted | Refusal]) -> str:
    """Why the one device is."""
    [refusal] = found
    assert isinstance(refusal, Refusal)
    return str(refusal)


@pytest.fixture
def members() -> Members:
    return Members()


@pytest.fixture
def admission(members: Members) -> Admission:
    return Admission(RUN, 4, members, devices=1, most_images=1000)


def test_a_device_joins_once_it_is_online_and_has_sent_its_profile(
    admission: Admission, members: Members
) -> None:
    assert admission.on_profile("pi-1", profile(1)) == []
    assert admission.on_status("pi-1", DeviceStatus(state="offline", instance=1)) == []
    [admitted] = admission.on_status("pi-1", online())
    assert isinstance(admitted, Admitted)
    assert (admitted.member.device, admitted.is_new) == ("pi-1", True)
    assert admission.on_status("pi-1", online()) == []  # alive, but nothing new
    assert members.class_names == ("a", "b")


def test_a_retained_profile_of_a_process_that_is_gone_lets_nobody_in(admission: Admission) -> None:
    assert admission.on_profile("pi-1", profile(1, instance=1)) == []
    assert admission.on_status("pi-1", online(instance=2)) == []


def test_a_retained_profile_for_an_earlier_run_lets_nobody_in(admission: Admission, members: Members) -> None:
    """Its process lives: it has stayed for this run, and still looks what its images are now."""
    admission.on_status("pi-1", online())
    assert admission.on_profile("pi-1", replace(profile(1, names=("x", "y")), run="of before")) == []
    assert not members.class_names
    [admitted] = admission.on_profile("pi-1", replace(profile(1, samples=96), run=RUN.run))
    assert isinstance(admitted, Admitted)
    assert (admitted.member.train_samples, members.class_names) == (96, ("a", "b"))


def test_the_same_process_may_send_its_profile_again(admission: Admission) -> None:
    admission.on_status("pi-1", online())
    admission.on_profile("pi-1", profile(1))
    [again] = admission.on_profile("pi-1", profile(1, next_cut=3))
    assert isinstance(again, Admitted)
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
    assert "keep --cut 3" in refused(admission.on_profile("pi-1", profile(2, instance=2)))
    said = refused(admission.on_profile("pi-1", profile(4, instance=2)))
    assert "is cut at 4; net can be cut at 1..3" in said


def test_devices_that_never_join_are_remembered_in_bounds(
    admission: Admission, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KNOWN_DEVICES", 2)
    for device in ("pi-1", "pi-2"):
        admission.on_status(device, online())
    with pytest.raises(MalformedMessage, match="more than 2 devices"):
        admission.on_status("pi-3", online())


def join(admission: Admission, device: str, *names: str) -> list[tuple[str, bool]]:
    """Who is let in or refused then, by name, and whether it is let in."""
    admission.on_status(device, online())
    found = admission.on_profile(device, profile(1, names=names))
    return [(one.member.device, True) if isinstance(one, Admitted) else (one.device, False) for one in found]


def test_class_names_are_those_of_more_than_half_of_the_devices_never_of_the_first(members: Members) -> None:
    admission = Admission(RUN, 4, members, devices=3, most_images=1000)
    assert join(admission, "evil", "x", "y") == []
    assert join(admission, "pi-1", "a", "b") == []
    assert "evil has [x, y]; pi-1 has [a, b]" in admission.vote.conflict
    assert members.class_names == ()
    assert join(admission, "pi-2", "a", "b") == [("evil", False), ("pi-1", True), ("pi-2", True)]
    assert members.class_names == ("a", "b")
    assert join(admission, "pi-3", "x", "y") == [("pi-3", False)]


def test_a_misspelt_class_is_named_and_taken_once_it_is_corrected(members: Members) -> None:
    admission = Admission(RUN, 4, members, devices=2, most_images=1000)
    join(admission, "pi-1", "glass", "plastic")
    join(admission, "pi-2", "glass", "plastic")
    admission.on_status("pi-3", online())
    said = refused(admission.on_profile("pi-3", profile(1, names=("glass", "platic"))))
    assert "pi-3 has the classes [glass, platic], the fleet [glass, plastic] (set by pi-1, pi-2)" in said
    assert "only it has [platic], it lacks [plastic]" in said
    said = refused(admission.on_profile("pi-3", profile(1, names=("plastic", "glass"))))
    assert "they are in another order" in said
    admission.on_status("pi-3", online(instance=2))
    [admitted] = admission.on_profile("pi-3", profile(1, instance=2, names=("glass", "plastic")))
    assert isinstance(admitted, Admitted)


def test_two_devices_must_agree_and_may_change_their_minds(members: Members) -> None:
    admission = Admission(RUN, 4, members, devices=2, most_images=1000)
    assert join(admission, "pi-1", "a", "b") == []
    assert join(admission, "pi-2", "b", "a") == []
    assert join(admission, "pi-2", "a", "b") == [("pi-1", True), ("pi-2", True)]


def test_names_that_most_devices_had_misspelt_change_before_the_first_commit_and_not_after(
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


def test_a_device_whose_own_names_grow_beyond_the_run_hears_what_helps(members: Members) -> None:
    """It alone has set the fleet's: the others' folders are not what is wrong."""
    admission = Admission(RUN, 4, members, devices=1, most_images=1000)
    join(admission, "pi-1", "a", "b")
    said = refused(admission.on_profile("pi-1", profile(1, names=("a", "b", "c"))))
    assert said == "pi-1 has 3 classes, the run 2: start the server with another --num-classes"


def test_the_operators_class_names_hold_from_the_start() -> None:
    admission = Admission(RUN, 4, Members(("a", "b")), devices=3, most_images=1000)
    assert join(admission, "evil", "x", "y") == [("evil", False)]
    assert join(admission, "pi-1", "a", "b") == [("pi-1", True)]


@pytest.mark.parametrize("samples", [1001, 1 << 61, 1 << 62])
def test_more_images_than_the_operator_allows_are_refused(admission: Admission, samples: int) -> None:
    admission.on_status("pi-1", online())
    said = refused(admission.on_profile("pi-1", profile(1, samples=samples)))
    assert f"says that it has {samples} images; at most 1000 are taken" in said


def test_who_is_in_quarantine_stays_there_until_it_is_let_back(members: Members) -> None:
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


def test_a_run_does_not_go_on_with_other_class_names() -> None:
    with pytest.raises(StateError, match=r"has the classes \[a, b\], not \[x, y\]"):
        Members(("x", "y")).load([], ("a", "b"))


def test_totals_never_exceed_what_a_message_can_say(members: Members) -> None:
    members.admit("pi-1", profile(1))
    done = RoundDone(
        run="r", round=1, attempt=1, digest="0" * 64, batches=1 << 62, bytes=1 << 62, loss=1.0, accuracy=1.0,
        seconds=1.0,
    )  # fmt: skip
    for _ in range(2):
        members.end_round(done, "pi-1", 3, 1.0)
    totals = members["pi-1"].totals
    assert (totals.batches, totals.published) == (6, 1 << 62)


def test_what_counts_outlives_the_process(members: Members) -> None:
    members.admit("pi-1", profile(2, next_cut=3))
    members.start_from("pi-1", 4, "0" * 64)
    after = Members()
    after.load(members.state(), ("a", "b"))
    member = after["pi-1"]
    assert (member.cut, member.next_cut, member.committed, member.digest) == (2, 3, 4, "0" * 64)
    assert not member.online
