# SPDX-License-Identifier: Apache-2.0
"""The phase under way: its window, its round-done, and what supersedes it."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import FakeClock, FakePort
from msgspec.structs import replace

from splitee.protocol.parts import Assembler
from splitee.protocol.rounds import Ack, Participant, Participation, RoundDone, RoundOpen
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import Topics
from splitee_device.agent.last_received import LastReceived
from splitee_device.agent.phase import ActivePhase

TOPICS = Topics("fleet")
SPEC = RunSpec(protocol=1, run="r", network="n", num_classes=2, rounds=3, window=3, window_bytes=1 << 16)
OPENED = RoundOpen(run="r", round=2, attempt=7, phase="train", participants=1)
MINE = Participant(cut=1, steps=4, base=1)
DROPPED = Participation(run="r", round=2, attempt=7, phase="train")
ACK = Ack(run="r", round=2, attempt=7, phase="train", step=0, room=3)
DONE = RoundDone(
    run="r", round=2, attempt=7, digest="a" * 64, batches=4, bytes=9, loss=1.0, accuracy=0.5, seconds=1.0
)
FEATURES, ROUND_DONE, WEIGHTS = (
    TOPICS.device("pi-1", leaf) for leaf in ("features", "round-done", "weights")
)


@pytest.fixture
def port() -> FakePort:
    return FakePort(FakeClock())


def phase_on(
    port: FakePort, opened: RoundOpen = OPENED, last_ack: Ack | None = None, room: int = 3
) -> ActivePhase:
    return ActivePhase(port, TOPICS, "pi-1", SPEC, opened, MINE, room, last_ack)


def payload(step: int, size: int = 10) -> bytes:
    return b"\x81" + bytes([step]) * (size - 1)


def test_window_is_full_at_its_batch_limit(port: FakePort) -> None:
    outbox = phase_on(port).outbox
    for step in range(3):
        assert not outbox.full
        outbox.add(step, payload(step))
    assert outbox.full
    outbox.acknowledge(replace(ACK, step=2))
    assert (outbox.full, outbox.empty, outbox.published) == (False, False, 30)
    outbox.acknowledge(replace(ACK, step=3))
    assert outbox.empty


def test_window_is_full_at_its_byte_limit(port: FakePort) -> None:
    outbox = phase_on(port).outbox
    outbox.add(0, payload(0, SPEC.window_bytes))
    assert outbox.full
    outbox.acknowledge(replace(ACK, step=1))
    assert not outbox.full


def test_room_of_the_server_limits_the_window(port: FakePort) -> None:
    outbox = phase_on(port).outbox
    outbox.acknowledge(replace(ACK, room=1))
    outbox.add(0, payload(0))
    assert outbox.full


def test_closed_window_is_full_until_an_acknowledgement_opens_it(port: FakePort) -> None:
    outbox = phase_on(port, room=0).outbox
    assert (outbox.full, outbox.empty) == (True, True)
    outbox.acknowledge(replace(ACK, room=1))
    assert not outbox.full
    outbox.add(0, payload(0))
    outbox.acknowledge(replace(ACK, step=1, room=0))
    assert (outbox.full, outbox.empty) == (True, True)


def test_batch_larger_than_a_broker_packet_is_sent_in_parts(port: FakePort) -> None:
    port.max_packet = 100
    phase_on(port).outbox.add(0, payload(0, 300))
    assembler = Assembler()
    *unfinished, whole = [assembler.add("pi-1", part) for part in port.payloads(FEATURES)]
    assert (set(unfinished), whole) == ({None}, payload(0, 300))


def test_unacknowledged_batches_are_sent_again_in_order_on_request(port: FakePort) -> None:
    phase = phase_on(port)
    for step in range(3):
        phase.outbox.add(step, payload(step))
    phase.on_ack(replace(ACK, step=1, resend=True))
    assert port.payloads(FEATURES) == [payload(step) for step in (0, 1, 2, 1, 2)]
    assert phase.outbox.published == 30


@pytest.mark.parametrize("changes", [{"run": "another"}, {"round": 1}, {"attempt": 6}, {"phase": "evaluate"}])
def test_acknowledgement_of_another_phase_is_ignored(port: FakePort, changes: dict[str, Any]) -> None:
    phase = phase_on(port)
    phase.outbox.add(0, payload(0))
    phase.on_ack(replace(ACK, step=1, resend=True, **changes))
    assert not phase.outbox.empty
    assert len(port.sent) == 1


def test_batches_acknowledged_before_a_restart_are_not_needed(port: FakePort) -> None:
    outbox = phase_on(port, last_ack=replace(ACK, step=2)).outbox
    assert [outbox.needs(step) for step in range(4)] == [False, False, True, True]


def test_round_done_follows_its_weights_and_both_are_sent_again_on_request(port: FakePort) -> None:
    phase = phase_on(port)
    phase.on_ack(replace(ACK, resend=True))
    assert port.sent == []  # the round is not trained yet
    phase.finish(DONE, lambda: [b"\x81one", b"\x81two"])
    phase.on_ack(ACK)
    phase.on_ack(replace(ACK, round=1, resend=True))  # a request counts, whichever phase it names
    once = [(WEIGHTS, b"\x81one"), (WEIGHTS, b"\x81two"), (ROUND_DONE, DONE.encode())]
    assert [(sent.topic, sent.payload) for sent in port.sent] == 2 * once


@pytest.mark.parametrize(
    ("changes", "before_done", "after_done"),
    [
        ({}, False, False),
        ({"phase": "evaluate"}, True, False),
        ({"round": 3}, True, False),
        ({"participants": 0}, False, False),
        ({"attempt": 8}, True, True),
        ({"run": "another", "attempt": 8}, True, True),
    ],
)
def test_round_done_leaves_only_new_attempts_to_supersede_a_phase(
    port: FakePort, changes: dict[str, Any], before_done: bool, after_done: bool
) -> None:
    phase, last_received = phase_on(port), LastReceived(5, 0.0)
    assert not phase.is_superseded(last_received)  # no phase was received
    last_received.add(replace(OPENED, **changes), 0.0)
    assert phase.is_superseded(last_received) is before_done
    phase.finish(DONE, list)
    assert phase.is_superseded(last_received) is after_done


def test_dropped_device_leaves_the_phase_unless_it_sent_round_done(port: FakePort) -> None:
    phase, last_received = phase_on(port), LastReceived(5, 0.0)
    last_received.add(OPENED, 0.0)
    last_received.add(replace(DROPPED, round=1), 0.0)
    assert not phase.is_superseded(last_received)
    last_received.add(DROPPED, 0.0)
    assert phase.is_superseded(last_received)
    phase.finish(DONE, list)
    assert not phase.is_superseded(last_received)


def test_evaluation_batches_need_acknowledgements_of_the_evaluation(port: FakePort) -> None:
    phase = phase_on(port, replace(OPENED, phase="evaluate"))
    phase.outbox.add(0, payload(0))
    phase.on_ack(replace(ACK, step=1))
    assert not phase.outbox.empty
    phase.on_ack(replace(ACK, step=1, phase="evaluate"))
    assert phase.outbox.empty
