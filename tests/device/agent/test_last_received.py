# SPDX-License-Identifier: Apache-2.0
"""What follows from the messages that a device has received."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from splitee.protocol.fleet import ServerStatus
from splitee.protocol.rounds import Ack, Assignment, Participant, Participation, RoundOpen
from splitee.protocol.run_spec import RunSpec
from splitee_device.agent.last_received import LastReceived, Outcome, phase_key

SPEC = RunSpec(protocol=1, run="r", network="n", num_classes=2, rounds=3)
MINE, ANOTHER = "a" * 64, "b" * 64
OPENED = RoundOpen(run="r", round=2, attempt=7, phase="train", participants=1)
PART = Participant(cut=1, steps=4, base=1)
PARTICIPATION = Participation(run="r", round=2, attempt=7, phase="train", part=PART, room=8)
DROPPED = replace(PARTICIPATION, part=None)
ASSIGNMENT = Assignment(run="r", attempt=7, instance=5, cut=1, committed=2, trained=MINE, digest=ANOTHER)
ONLINE = ServerStatus(state="online", instance=7, run="r")


@pytest.fixture
def last_received() -> LastReceived:
    return LastReceived(instance=5, now=100.0)


@pytest.mark.parametrize(
    ("message", "last_seen"),
    [
        (OPENED, 120.0),
        (Ack(run="r", round=2, attempt=7, phase="train", step=0, room=8), 120.0),
        (ONLINE, 120.0),
        (replace(ONLINE, state="offline"), 100.0),
        (SPEC, 100.0),
        (PARTICIPATION, 100.0),
        (ASSIGNMENT, 100.0),
    ],
)
def test_sign_of_life_depends_on_the_message_kind(
    last_received: LastReceived, message: object, last_seen: float
) -> None:
    last_received.add(message, 120.0)  # type: ignore[arg-type]
    assert last_received.last_seen == last_seen


def test_latest_message_of_each_kind_is_kept(last_received: LastReceived) -> None:
    for message in (SPEC, OPENED, PARTICIPATION, ASSIGNMENT, ONLINE, replace(OPENED, phase="evaluate")):
        last_received.add(message, 120.0)
    assert last_received.spec == SPEC
    assert last_received.round == replace(OPENED, phase="evaluate")
    assert (last_received.assignment, last_received.server, last_received.ack) == (ASSIGNMENT, ONLINE, None)
    assert last_received.participation == PARTICIPATION


def test_join_is_confirmed_only_by_an_assignment_to_this_process_and_run(last_received: LastReceived) -> None:
    assert not last_received.is_joined
    last_received.add(SPEC, 0)
    last_received.add(replace(ASSIGNMENT, instance=4), 0)
    assert not last_received.is_joined
    last_received.add(ASSIGNMENT, 0)
    assert last_received.is_joined
    last_received.add(replace(SPEC, run="the next"), 0)
    assert not last_received.is_joined


@pytest.mark.parametrize(
    ("phase", "run", "trained", "finished"),
    [
        ("train", "r", False, False),
        ("release", "r", True, False),
        ("finished", "r", True, True),
        ("finished", "of before", False, False),
    ],
)
def test_open_phase_decides_whether_the_run_is_trained_or_finished(
    last_received: LastReceived, phase: str, run: str, trained: bool, finished: bool
) -> None:
    last_received.add(replace(OPENED, phase=phase, run=run), 0)
    assert not last_received.is_trained  # the run is not known yet
    last_received.add(SPEC, 0)
    assert (last_received.is_trained, last_received.is_finished) == (trained, finished)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (None, "the server is offline"),
        (replace(ONLINE, state="offline"), "the server is offline"),
        (ONLINE, ""),
        (replace(ONLINE, waiting_for=("pi-2", "pi-3")), "the server waits for pi-2, pi-3"),
        (
            replace(ONLINE, waiting_for=tuple(f"pi-{n}" for n in range(9))),
            "the server waits for pi-0, pi-1, pi-2, pi-3, pi-4",
        ),
    ],
)
def test_reason_for_waiting_names_offline_server_or_up_to_five_devices(
    last_received: LastReceived, status: ServerStatus | None, said: str
) -> None:
    if status is not None:
        last_received.add(status, 0)
    assert last_received.waiting_reason() == said


@pytest.mark.parametrize(
    ("changes", "takes_part"),
    [
        ({}, True),
        ({"attempt": 8}, False),  # without a participation
        ({"round": 3}, False),
        ({"phase": "release"}, True),
        ({"phase": "finished"}, True),
        ({"run": "another"}, False),
    ],
)
def test_next_phase_is_one_with_participation_or_the_end_of_the_run(
    last_received: LastReceived, changes: dict[str, object], takes_part: bool
) -> None:
    done = phase_key(replace(OPENED, round=1, phase="evaluate"))
    assert last_received.next_phase("r", done) is None
    opened = replace(OPENED, **changes)
    last_received.add(PARTICIPATION, 0)
    assert last_received.next_phase("r", done) is None
    last_received.add(opened, 0)
    assert last_received.next_phase("r", done) == (opened if takes_part else None)


def test_completed_phase_does_not_begin_again(last_received: LastReceived) -> None:
    last_received.add(PARTICIPATION, 0)
    last_received.add(OPENED, 0)
    assert last_received.next_phase("r", phase_key(OPENED)) is None
    assert last_received.next_phase("r", phase_key(replace(OPENED, attempt=6))) == OPENED


@pytest.mark.parametrize(
    ("changed", "is_later"),
    [
        ({}, False),
        ({"phase": "train"}, False),
        ({"phase": "gather"}, False),
        ({"phase": "evaluate", "round": 1}, False),
        ({"phase": "evaluate", "attempt": 8}, False),
        ({"phase": "evaluate", "run": "of before"}, False),
        ({"phase": "evaluate"}, True),
        ({"phase": "finished"}, True),
        ({"phase": "train", "round": 3}, True),
    ],
)
def test_only_a_later_phase_of_the_attempt_shows_that_one_is_over(
    last_received: LastReceived, changed: dict[str, Any], is_later: bool
) -> None:
    statistics = replace(OPENED, phase="statistics")
    assert not last_received.has_passed(statistics)
    last_received.add(replace(statistics, **changed), 0)
    assert last_received.has_passed(statistics) == is_later


def test_phase_continues_from_the_assignment_of_its_base_and_attempt(last_received: LastReceived) -> None:
    right = replace(ASSIGNMENT, committed=1)
    for wrong in (ASSIGNMENT, replace(right, attempt=6)):
        last_received.add(wrong, 0)
        assert last_received.assignment_for(OPENED, PART) is None
    last_received.add(right, 0)
    assert last_received.assignment_for(OPENED, PART) == right


def test_phase_begins_once_its_participation_arrives(last_received: LastReceived) -> None:
    """After a reconnect, retained messages come in any order."""
    last_received.add(OPENED, 0)
    assert last_received.next_phase("r", None) is None
    last_received.add(PARTICIPATION, 0)
    assert last_received.next_phase("r", None) == OPENED
    assert last_received.part_in(OPENED) == PARTICIPATION


def test_dropped_device_takes_no_part_in_the_phase(last_received: LastReceived) -> None:
    for message in (OPENED, PARTICIPATION, DROPPED):
        last_received.add(message, 0)
    assert last_received.next_phase("r", None) is None
    assert last_received.is_dropped_from(OPENED)
    assert not last_received.is_dropped_from(replace(OPENED, attempt=8))


# The next round, which continues from the commit of this one.
NEXT = replace(PARTICIPATION, round=3, part=replace(PART, base=2))


@pytest.mark.parametrize(
    ("message", "outcome"),
    [
        (None, Outcome.PENDING),
        (ASSIGNMENT, Outcome.COMMITTED),
        (replace(ASSIGNMENT, trained=ANOTHER), Outcome.COMMITTED_WITHOUT),  # it continues from held weights
        (replace(ASSIGNMENT, committed=3), Outcome.COMMITTED_WITHOUT),
        (replace(ASSIGNMENT, committed=1), Outcome.PENDING),
        (replace(ASSIGNMENT, attempt=6), Outcome.PENDING),
        (replace(ASSIGNMENT, run="another"), Outcome.PENDING),
        (PARTICIPATION, Outcome.PENDING),
        (DROPPED, Outcome.COMMITTED_WITHOUT),
        (replace(DROPPED, attempt=6), Outcome.PENDING),
        (NEXT, Outcome.PENDING),  # the assignment is still to come
        (replace(NEXT, round=2, phase="evaluate"), Outcome.PENDING),
        (replace(NEXT, part=PART), Outcome.COMMITTED_WITHOUT),
        (replace(NEXT, part=PART, attempt=6), Outcome.PENDING),
        (replace(NEXT, round=1, phase="evaluate", part=PART), Outcome.PENDING),  # an earlier phase
    ],
)
def test_round_outcome_follows_from_assignment_or_participation(
    last_received: LastReceived, message: Assignment | Participation | None, outcome: Outcome
) -> None:
    if message is not None:
        last_received.add(message, 0)
    assert last_received.outcome(OPENED, MINE) is outcome


def test_round_stays_committed_when_device_is_dropped_from_a_later_phase(last_received: LastReceived) -> None:
    last_received.add(ASSIGNMENT, 0)
    last_received.add(replace(DROPPED, phase="evaluate"), 0)
    assert last_received.outcome(OPENED, MINE) is Outcome.COMMITTED
