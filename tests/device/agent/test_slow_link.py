# SPDX-License-Identifier: Apache-2.0
"""A device behind a slow link: its status while it sends, and requests that it does not repeat."""

from __future__ import annotations

import pytest
from fakes import FakeClock, FakePort
from msgspec.structs import replace
from torch import arange

from splitee.errors import Unwinding
from splitee.protocol import routes
from splitee.protocol.fleet import DeviceStatus
from splitee.protocol.parts import PART_OVERHEAD, split
from splitee.protocol.rounds import Assignment, Participant, Participation, RoundOpen, Sync
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import PROTOCOL, Topics
from splitee.training.state import weights_digest
from splitee.training.weights import pack_weights
from splitee_device.agent.session import Session

TOPICS = Topics("fleet")
SPEC = RunSpec(
    protocol=PROTOCOL, run="run", network="resnet18", num_classes=2, rounds=1, batch_size=4, window=2
)
OPENED = RoundOpen(run="run", round=1, attempt=1, phase="train", participants=1)
PART = Participation(
    run="run", round=1, attempt=1, phase="train", part=Participant(cut=1, steps=3, base=0), room=2
)
STATUS = routes.STATUS.topic(TOPICS, "pi-1")
FEATURES = routes.FEATURES.topic(TOPICS, "pi-1")
PART_TIME = 2.0  # seconds


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def port(clock: FakeClock) -> FakePort:
    """Takes PART_TIME for a part of features, at 170 bytes a second."""
    port = FakePort(clock, max_packet=400)
    port.speed = 170.0

    def carry(sent: object) -> None:
        if getattr(sent, "topic", "") == FEATURES:
            clock.advance(PART_TIME)
            port.busy += PART_TIME

    port.on_sent = carry
    return port


def statuses(port: FakePort) -> list[DeviceStatus]:
    return [DeviceStatus.decode(sent.payload) for sent in port.sent if sent.topic == STATUS]


def take_part(session: Session, port: FakePort) -> None:
    port.deliver(routes.PARTICIPATION.topic(TOPICS, "pi-1"), PART.encode())
    session.pump(0)


def test_status_is_sent_between_the_parts_of_a_slow_batch(clock: FakeClock, port: FakePort) -> None:
    session = Session(port, TOPICS, "pi-1", 5, clock=clock)
    session.presence.report("training", 1, 1, 3)
    take_part(session, port)
    with session.phase(SPEC, OPENED) as phase:
        phase.outbox.add(0, bytes(5000))
    found = statuses(port)
    assert len(found) == -(-5000 // (400 - PART_OVERHEAD))  # at the start, and before each part but the first
    assert {status.doing for status in found} == {"training"}
    assert {status.upload for status in found[2:]} == {170.0}, "it is slow, and says so"


def test_stopped_device_does_not_send_the_rest_of_its_batch(clock: FakeClock, port: FakePort) -> None:
    session = Session(port, TOPICS, "pi-1", 5, clock=clock, stop=lambda: clock() > 1020)
    take_part(session, port)
    with session.phase(SPEC, OPENED) as phase, pytest.raises(Unwinding):
        phase.outbox.add(0, bytes(50_000))
    assert len([sent for sent in port.sent if sent.topic == FEATURES]) < 15


def test_weights_in_transit_are_not_requested_again(clock: FakeClock, port: FakePort) -> None:
    """The transfer takes two minutes; repeated every 15 seconds, a request would start it eight times."""
    weights = {"a": arange(1000.0)}
    assignment = Assignment(run="run", attempt=1, instance=5, cut=1, digest=weights_digest(weights))
    session = Session(port, TOPICS, "pi-1", 5, clock=clock)
    port.deliver(routes.ASSIGNMENT.topic(TOPICS, "pi-1"), assignment.encode())
    requested: list[Sync] = []

    def respond(sent: object) -> None:
        if getattr(sent, "topic", "") != routes.SYNC.topic(TOPICS, "pi-1"):
            return
        requested.append(Sync.decode(sent.payload))  # type: ignore[attr-defined]
        (payload,) = pack_weights("run", 0, 1, weights)
        for index, part in enumerate(split(payload, 400, len(requested)), start=1):
            port.later(12.0 * index, routes.HELD_WEIGHTS.topic(TOPICS, "pi-1"), part)

    port.on_sent = respond
    fetched = session.requests.fetch_weights(weights, replace(assignment, committed=0))
    assert fetched["a"].equal(weights["a"])
    assert len(requested) == 1
