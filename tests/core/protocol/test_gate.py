# SPDX-License-Identifier: Apache-2.0
"""The boundary around what others send: read wholly, or counted by sender and reason."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.strategies import damaged, messages

from splitee.cli.signals import Stopped
from splitee.errors import MalformedMessage, StateError
from splitee.mqtt.events import Message
from splitee.protocol import gate as module
from splitee.protocol import routes
from splitee.protocol.codecs import EncodedTensor
from splitee.protocol.encoding import JsonMessage, PackedMessage
from splitee.protocol.fleet import DeviceStatus
from splitee.protocol.gate import LOGGED, Gate, Received, Rejection
from splitee.protocol.parts import split
from splitee.protocol.release_orders import RolloutPlan
from splitee.protocol.rounds import Ack, RoundDone, Weights
from splitee.protocol.routes import ROUTES, Route
from splitee.protocol.topics import Topics

TOPICS = Topics("home")
ONLINE = DeviceStatus(state="online", instance=1).encode()


def sent(route: Route, payload: bytes, device: str = "pi-1") -> Message:
    return Message(route.topic(TOPICS, device), payload)


def test_a_message_is_read_as_what_its_route_carries() -> None:
    received = Gate(TOPICS, ROUTES).read(sent(routes.STATUS, ONLINE))
    assert received is not None
    assert received.message == DeviceStatus(state="online", instance=1)
    assert (received.route, received.device, received.sender) == (routes.STATUS, "pi-1", "pi-1")


def test_who_sends_is_told_by_the_route() -> None:
    ack = Ack(run="r", round=1, attempt=1, phase="train", step=1, room=1)
    received = Gate(TOPICS, ROUTES).read(sent(routes.ACK, ack.encode()))
    assert received is not None
    assert (received.device, received.sender) == ("pi-1", "server")


def test_other_routes_and_topics_are_passed_over() -> None:
    gate = Gate(TOPICS, (routes.STATUS,))
    for topic in (
        routes.ACK.topic(TOPICS, "pi-1"),
        "splitee/v1/other/run",
        f"{TOPICS.base}/devices/pi-1/else",
    ):
        assert gate.read(Message(topic, b"x")) is None
    assert gate.rejected.total() == 0


@given(data=st.data(), route=st.sampled_from(ROUTES))
def test_nothing_that_comes_raises(data: st.DataObject, route: Route) -> None:
    """Either it is read, or it is counted once."""
    kind = damaged(messages(route.message).map(lambda message: message.encode()))
    payload = data.draw(kind | st.binary())
    gate = Gate(TOPICS, ROUTES, log_first=0)
    received = gate.read(sent(route, payload))
    is_part = route.parts and payload[:1] and payload[0] & 0xF0 == 0x90
    assert (received is not None) + gate.rejected.total() == 1 or is_part


@pytest.mark.parametrize("error", [ValueError("too long"), KeyError("pi-9"), RuntimeError(), MemoryError()])
def test_whatever_a_message_raises_rejects_that_message(error: Exception) -> None:
    def fail(_received: Received) -> None:
        raise error

    told: list[Rejection] = []
    gate = Gate(TOPICS, ROUTES, on_rejected=told.append)
    received = gate.read(sent(routes.STATUS, ONLINE))
    assert received is not None
    assert not gate.apply(received, fail)
    assert gate.rejected == {("pi-1", "unhandled"): 1}
    assert type(error).__name__ in str(told[0].error)


@pytest.mark.parametrize("error", [StateError("the disk is full"), Stopped()])
def test_what_is_no_fault_of_the_message_passes(error: Exception) -> None:
    gate = Gate(TOPICS, ROUTES)

    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        gate.guard(routes.FEATURES, "pi-1", fail)
    assert gate.rejected.total() == 0


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_what_is_retained_where_nothing_must_be_is_refused(route: Route) -> None:
    gate = Gate(TOPICS, ROUTES)
    gate.read(Message(route.topic(TOPICS, "pi-1"), b"x", retained=True))
    [(_, reason)] = gate.rejected
    assert reason == ("malformed" if route.retained else "retained")


def test_what_is_applied_and_found_malformed_is_counted_too() -> None:
    def refuse(_received: Received) -> None:
        raise MalformedMessage("of run 'b', this is 'a'", "foreign")

    told: list[Rejection] = []
    gate = Gate(TOPICS, ROUTES, on_rejected=told.append)
    received = gate.read(sent(routes.STATUS, ONLINE))
    assert received is not None
    assert gate.apply(received, lambda _: None)
    assert not gate.apply(received, refuse)
    assert gate.rejected == {("pi-1", "foreign"): 1}
    assert [(one.route, one.device, one.is_logged) for one in told] == [(routes.STATUS, "pi-1", True)]


def test_the_first_few_of_a_sender_are_logged_and_all_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    told: list[Rejection] = []
    gate = Gate(TOPICS, ROUTES, on_rejected=told.append)
    with caplog.at_level(logging.WARNING):
        for device in ("pi-1", "pi-2"):
            for _ in range(LOGGED + 5):
                gate.read(sent(routes.SYNC, b"x", device))
    assert len(caplog.records) == 2 * LOGGED
    assert sum(record.message.endswith("further ones are only counted") for record in caplog.records) == 2
    assert sum(one.is_logged for one in told) == 2 * LOGGED
    assert gate.rejected == {("pi-1", "malformed"): LOGGED + 5, ("pi-2", "malformed"): LOGGED + 5}


def test_senders_are_counted_one_by_one_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SENDERS", 2)
    gate = Gate(TOPICS, ROUTES, log_first=0)
    for number in range(5):
        gate.read(sent(routes.SYNC, b"x", f"pi-{number}"))
    assert gate.rejected.total() == 5
    assert gate.rejected[module.OTHERS, "malformed"] == 3


def test_of_a_stranger_not_even_a_part_is_kept() -> None:
    def members_only(_route: Route, device: str) -> None:
        if device != "pi-1":
            raise MalformedMessage("from a device that has not joined", "unknown")

    gate = Gate(TOPICS, ROUTES, admit=members_only)
    parts = list(split(b"\x80" + bytes(1000), 500, 1))
    assert gate.read(sent(routes.FEATURES, parts[0], "pi-2")) is None
    assert gate.rejected == {("pi-2", "unknown"): 1}


def test_parts_are_joined_by_sender_and_route_and_forgotten_with_their_process() -> None:
    gate = Gate(TOPICS, ROUTES)
    first, last = split(weights(), 400, 1)
    assert gate.read(sent(routes.WEIGHTS, first)) is None
    assert gate.read(sent(routes.WEIGHTS, last, "pi-2")) is None
    assert gate.read(sent(routes.WEIGHTS, last)) is not None
    first, last = split(weights(), 400, 2)
    gate.read(sent(routes.WEIGHTS, first))
    gate.forget_parts("pi-1")
    assert gate.read(sent(routes.WEIGHTS, last)) is None
    assert gate.rejected.total() == 0


def weights() -> bytes:
    tensor = EncodedTensor("fp32", [10], bytes(40))
    return Weights(run="r" * 100, round=1, tensors={"t" * 300: tensor}).encode()


def test_a_route_has_its_own_largest_message() -> None:
    gate = Gate(TOPICS, ROUTES)
    part = next(iter(split(bytes(routes.MAX_REQUEST + 1), 1 << 20, 1)))
    assert gate.read(sent(routes.INFER, part)) is None
    assert gate.rejected == {("pi-1", "oversized"): 1}
    assert gate.read(sent(routes.FEATURES, part)) is None
    assert gate.rejected.total() == 1


def test_a_cleared_topic_is_a_message_only_where_it_means_something() -> None:
    assert Gate(TOPICS, ROUTES).read(sent(routes.STATUS, b"")) is None
    received = Gate(TOPICS, ROUTES, takes_cleared=True).read(sent(routes.STATUS, b""))
    assert received is not None
    assert received.message is None
    gate = Gate(TOPICS, ROUTES, takes_cleared=True)
    assert gate.read(sent(routes.SYNC, b"")) is None  # not retained: nothing to clear
    assert gate.rejected.total() == 1


def test_every_route_has_a_topic_of_its_own_and_is_found_by_it() -> None:
    topics = {route.topic(TOPICS, "pi-1"): route for route in ROUTES}
    assert len(topics) == len(ROUTES)
    for topic, route in topics.items():
        assert routes.find(TOPICS, topic) == (route, "pi-1" if route.of_device else "")
    assert RoundDone in {route.message for route in ROUTES}


def test_every_message_of_the_protocol_has_a_route() -> None:
    """But for the plan of a rollout, which comes in the pieces of an upload."""
    kinds = {*leaves(JsonMessage), *leaves(PackedMessage)} - {RolloutPlan}
    assert {kind for kind in kinds if kind.__module__.startswith("splitee.protocol.")} == {
        route.message for route in ROUTES
    }


def leaves(kind: type) -> Iterator[type]:
    """Those that derive from it, and from which none does."""
    for derived in kind.__subclasses__():
        yield from leaves(derived) if derived.__subclasses__() else (derived,)
