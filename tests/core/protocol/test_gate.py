# SPDX-License-Identifier: Apache-2.0
"""The gate: a received message is read completely, or rejected and counted by sender and reason."""

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


def test_message_is_decoded_as_the_type_of_its_route() -> None:
    received = Gate(TOPICS, ROUTES).read(sent(routes.STATUS, ONLINE))
    assert received is not None
    assert received.message == DeviceStatus(state="online", instance=1)
    assert (received.route, received.device, received.sender) == (routes.STATUS, "pi-1", "pi-1")


def test_route_determines_the_sender() -> None:
    ack = Ack(run="r", round=1, attempt=1, phase="train", step=1, room=1)
    received = Gate(TOPICS, ROUTES).read(sent(routes.ACK, ack.encode()))
    assert received is not None
    assert (received.device, received.sender) == ("pi-1", "server")


def test_messages_on_other_routes_and_topics_are_ignored() -> None:
    gate = Gate(TOPICS, (routes.STATUS,))
    for topic in (
        routes.ACK.topic(TOPICS, "pi-1"),
        "splitee/v1/other/run",
        f"{TOPICS.base}/devices/pi-1/else",
    ):
        assert gate.read(Message(topic, b"x")) is None
    assert gate.rejected.total() == 0


@given(data=st.data(), route=st.sampled_from(ROUTES))
def test_damaged_message_is_read_or_rejected_without_raising(data: st.DataObject, route: Route) -> None:
    """Each message is either read or counted once."""
    kind = damaged(messages(route.message).map(lambda message: message.encode()))
    payload = data.draw(kind | st.binary())
    gate = Gate(TOPICS, ROUTES, log_first=0)
    received = gate.read(sent(route, payload))
    is_part = route.parts and payload[:1] and payload[0] & 0xF0 == 0x90
    assert (received is not None) + gate.rejected.total() == 1 or is_part


@pytest.mark.parametrize("error", [ValueError("too long"), KeyError("pi-9"), RuntimeError(), MemoryError()])
def test_exception_of_an_action_rejects_its_message(error: Exception) -> None:
    def fail(_received: Received) -> None:
        raise error

    rejections: list[Rejection] = []
    gate = Gate(TOPICS, ROUTES, on_rejected=rejections.append)
    received = gate.read(sent(routes.STATUS, ONLINE))
    assert received is not None
    assert not gate.apply(received, fail)
    assert gate.rejected == {("pi-1", "unhandled"): 1}
    assert type(error).__name__ in str(rejections[0].error)


@pytest.mark.parametrize("error", [StateError("the disk is full"), Stopped()])
def test_state_error_and_stop_pass_through_the_gate(error: Exception) -> None:
    gate = Gate(TOPICS, ROUTES)

    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        gate.guard(routes.FEATURES, "pi-1", fail)
    assert gate.rejected.total() == 0


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_retained_message_on_an_unretained_route_is_rejected(route: Route) -> None:
    gate = Gate(TOPICS, ROUTES)
    gate.read(Message(route.topic(TOPICS, "pi-1"), b"x", retained=True))
    [(_, reason)] = gate.rejected
    assert reason == ("malformed" if route.retained else "retained")


def test_message_that_its_action_finds_malformed_is_counted() -> None:
    def refuse(_received: Received) -> None:
        raise MalformedMessage("of run 'b', this is 'a'", "foreign")

    rejections: list[Rejection] = []
    gate = Gate(TOPICS, ROUTES, on_rejected=rejections.append)
    received = gate.read(sent(routes.STATUS, ONLINE))
    assert received is not None
    assert gate.apply(received, lambda _: None)
    assert not gate.apply(received, refuse)
    assert gate.rejected == {("pi-1", "foreign"): 1}
    assert [(each.route, each.device, each.is_logged) for each in rejections] == [
        (routes.STATUS, "pi-1", True)
    ]


def test_first_rejections_of_a_sender_are_logged_and_all_counted(caplog: pytest.LogCaptureFixture) -> None:
    rejections: list[Rejection] = []
    gate = Gate(TOPICS, ROUTES, on_rejected=rejections.append)
    with caplog.at_level(logging.WARNING):
        for device in ("pi-1", "pi-2"):
            for _ in range(LOGGED + 5):
                gate.read(sent(routes.SYNC, b"x", device))
    assert len(caplog.records) == 2 * LOGGED
    assert sum(record.message.endswith("further ones are only counted") for record in caplog.records) == 2
    assert sum(each.is_logged for each in rejections) == 2 * LOGGED
    assert gate.rejected == {("pi-1", "malformed"): LOGGED + 5, ("pi-2", "malformed"): LOGGED + 5}


def test_number_of_senders_counted_separately_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SENDERS", 2)
    gate = Gate(TOPICS, ROUTES, log_first=0)
    for number in range(5):
        gate.read(sent(routes.SYNC, b"x", f"pi-{number}"))
    assert gate.rejected.total() == 5
    assert gate.rejected[module.OTHERS, "malformed"] == 3


def test_parts_of_an_unknown_device_are_rejected() -> None:
    def members_only(_route: Route, device: str) -> None:
        if device != "pi-1":
            raise MalformedMessage("from a device that has not joined", "unknown")

    gate = Gate(TOPICS, ROUTES, admit=members_only)
    parts = list(split(b"\x80" + bytes(1000), 500, 1))
    assert gate.read(sent(routes.FEATURES, parts[0], "pi-2")) is None
    assert gate.rejected == {("pi-2", "unknown"): 1}


def test_parts_are_joined_per_sender_and_route_until_they_are_forgotten() -> None:
    gate = Gate(TOPICS, ROUTES)
    first, last = split(weights(), 400, 1)
    assert gate.read(sent(routes.WEIGHTS, first)) is None
    assert gate.read(sent(routes.WEIGHTS, last, "pi-2")) is None
    assert gate.read(sent(routes.FEATURES, last)) is None
    assert gate.rejected.total() == 0, "no message has been completed on another route"
    assert gate.read(sent(routes.WEIGHTS, last)) is not None
    first, last = split(weights(), 400, 2)
    gate.read(sent(routes.WEIGHTS, first))
    gate.forget_parts("pi-1")
    assert gate.read(sent(routes.WEIGHTS, last)) is None
    assert gate.rejected.total() == 0


def weights() -> bytes:
    tensor = EncodedTensor("fp32", [10], bytes(40))
    return Weights(run="r" * 100, round=1, tensors={"t" * 300: tensor}).encode()


def test_message_size_limit_depends_on_the_route() -> None:
    gate = Gate(TOPICS, ROUTES)
    part = next(iter(split(bytes(routes.MAX_REQUEST + 1), 1 << 20, 1)))
    assert gate.read(sent(routes.INFER, part)) is None
    assert gate.rejected == {("pi-1", "oversized"): 1}
    assert gate.read(sent(routes.FEATURES, part)) is None
    assert gate.rejected.total() == 1


def test_gate_reads_cleared_topics_of_retained_routes_if_configured() -> None:
    assert Gate(TOPICS, ROUTES).read(sent(routes.STATUS, b"")) is None
    received = Gate(TOPICS, ROUTES, accepts_cleared=True).read(sent(routes.STATUS, b""))
    assert received is not None
    assert received.message is None
    gate = Gate(TOPICS, ROUTES, accepts_cleared=True)
    assert gate.read(sent(routes.SYNC, b"")) is None  # not retained: nothing to clear
    assert gate.rejected.total() == 1


def test_every_route_has_its_own_topic_and_is_found_by_it() -> None:
    topics = {route.topic(TOPICS, "pi-1"): route for route in ROUTES}
    assert len(topics) == len(ROUTES)
    for topic, route in topics.items():
        assert routes.find_route(TOPICS, topic) == (route, "pi-1" if route.of_device else "")
    assert RoundDone in {route.message for route in ROUTES}


def test_every_protocol_message_type_has_a_route() -> None:
    """Except the plan of a rollout, which is sent in the pieces of an upload."""
    kinds = {*leaves(JsonMessage), *leaves(PackedMessage)} - {RolloutPlan}
    assert {kind for kind in kinds if kind.__module__.startswith("splitee.protocol.")} == {
        route.message for route in ROUTES
    }


def leaves(kind: type) -> Iterator[type]:
    """The classes derived from `kind` that have no derived classes."""
    for derived in kind.__subclasses__():
        yield from leaves(derived) if derived.__subclasses__() else (derived,)
