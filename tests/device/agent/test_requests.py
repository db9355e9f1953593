# SPDX-License-Identifier: Apache-2.0
"""What a device fetches from its server, one message at a time, despite losses and wrong messages."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fakes import FakeClock, FakePort, Sent
from msgspec.structs import replace
from torch import Tensor

from splitee.protocol import routes
from splitee.protocol.codecs import encode_tensor
from splitee.protocol.fleet import DeviceStatus
from splitee.protocol.rounds import Assignment, SoftLabelRows, Sync, Weights
from splitee.protocol.topics import Topics
from splitee.training.soft_labels import SoftLabels, SoftLabelsAssembler, pack_rows
from splitee.training.state import weights_digest
from splitee.training.weights import pack_weights, select
from splitee_device.agent.session import Session

TOPICS = Topics("fleet")
SIZE = 3 << 18  # values, 3 MiB: no two tensors share a message
NETWORK = {name: torch.full((SIZE,), value) for name, value in (("a", 1.0), ("b", 2.0), ("c", 3.0))}
LIKE = {name: torch.empty_like(tensor) for name, tensor in NETWORK.items()}
ASSIGNMENT = Assignment(
    run="r", attempt=7, instance=5, cut=1, committed=2, digest=weights_digest(NETWORK), held=True
)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def port(clock: FakeClock) -> FakePort:
    return FakePort(clock)


@pytest.fixture
def session(port: FakePort, clock: FakeClock) -> Session:
    session = Session(port, TOPICS, "pi-1", 5, clock=clock)
    port.deliver(routes.ASSIGNMENT.topic(TOPICS, "pi-1"), ASSIGNMENT.encode())
    session.drain()
    return session


def serve(port: FakePort, respond: Callable[[Sync], None]) -> list[Sync]:
    """Have a server call `respond` for each request; returns the list of the requests."""
    requested: list[Sync] = []

    def on_sent(sent: Sent) -> None:
        assert sent.topic == TOPICS.device("pi-1", "sync")
        requested.append(Sync.decode(sent.payload))
        respond(requested[-1])

    port.on_sent = on_sent
    return requested


def deliver(port: FakePort, tensors: dict[str, Tensor], attempt: int = 7) -> None:
    for payload in pack_weights("r", 2, attempt, tensors):
        port.deliver(routes.HELD_WEIGHTS.topic(TOPICS, "pi-1"), payload)


def is_fetched(found: dict[str, Tensor]) -> bool:
    return found.keys() == NETWORK.keys() and all(torch.equal(found[name], NETWORK[name]) for name in NETWORK)


def rejected(port: FakePort, session: Session) -> int:
    """The number that the device's status reports."""
    port.on_sent = lambda _sent: None
    session.presence.report("waiting", 2)
    return DeviceStatus.decode(port.sent[-1].payload).rejected


def test_weights_are_fetched_one_message_at_a_time(
    port: FakePort, clock: FakeClock, session: Session
) -> None:
    requested = serve(port, lambda sync: deliver(port, select(NETWORK, sync.weights)))
    started = clock()
    assert is_fetched(session.requests.fetch_weights(LIKE, ASSIGNMENT))
    assert requested == [Sync(run="r", instance=5, weights=(name,)) for name in ("a", "b", "c")]
    assert clock() == started
    assert rejected(port, session) == 0


def test_wrong_messages_do_not_disturb_a_fetch_of_weights(port: FakePort, session: Session) -> None:
    a = encode_tensor("fp32", NETWORK["a"].numpy())

    def respond(sync: Sync) -> None:
        wrong = (
            Weights(run="r", round=2, attempt=7, tensors={"b": a, "stranger": a}),
            Weights(run="r", round=2, attempt=7, tensors={"b": replace(a, shape=[2])}),
            Weights(run="r", round=2, attempt=6, tensors={"b": a}),  # from before the server's restart
            Weights(run="r", round=1, attempt=7, tensors={"b": a}),
            Weights(run="another", round=2, attempt=7, tensors={"b": a}),
        )
        for message in wrong:
            port.deliver(routes.HELD_WEIGHTS.topic(TOPICS, "pi-1"), message.encode())
        port.deliver(routes.HELD_WEIGHTS.topic(TOPICS, "pi-1"), b"\xc1")
        deliver(port, select(NETWORK, sync.weights))

    requested = serve(port, respond)
    assert is_fetched(session.requests.fetch_weights(LIKE, ASSIGNMENT))
    assert len(requested) == 3
    assert rejected(port, session) == 3 * 3


def test_lost_weights_are_requested_again_after_15_seconds(
    port: FakePort, clock: FakeClock, session: Session
) -> None:
    requested = serve(
        port, lambda sync: deliver(port, select(NETWORK, sync.weights)) if len(requested) > 1 else None
    )
    started = clock()
    assert is_fetched(session.requests.fetch_weights(LIKE, ASSIGNMENT))
    assert [sync.weights for sync in requested] == [("a",), ("a",), ("b",), ("c",)]
    assert 15 <= clock() - started <= 16


def test_weights_with_another_digest_are_requested_again_at_once(
    port: FakePort, clock: FakeClock, session: Session
) -> None:
    def respond(sync: Sync) -> None:
        tensors = select(NETWORK, sync.weights)
        if len(requested) == 3:
            tensors = {name: tensor + 1 for name, tensor in tensors.items()}
        deliver(port, tensors)

    requested = serve(port, respond)
    started = clock()
    assert is_fetched(session.requests.fetch_weights(LIKE, ASSIGNMENT))
    assert [sync.weights for sync in requested] == 2 * [("a",), ("b",), ("c",)]
    assert clock() == started
    assert rejected(port, session) == 1


def test_fetch_of_weights_continues_after_a_server_restart(port: FakePort, session: Session) -> None:
    def respond(sync: Sync) -> None:
        if len(requested) == 2:
            restarted = replace(ASSIGNMENT, attempt=8)
            port.deliver(routes.ASSIGNMENT.topic(TOPICS, "pi-1"), restarted.encode())
        deliver(port, select(NETWORK, sync.weights), attempt=7 if len(requested) == 1 else 8)

    requested = serve(port, respond)
    assert is_fetched(session.requests.fetch_weights(LIKE, ASSIGNMENT))
    assert len(requested) == 3


def test_unrequested_weights_and_soft_labels_are_ignored(port: FakePort, session: Session) -> None:
    deliver(port, NETWORK)
    port.deliver(routes.SOFT_LABELS.topic(TOPICS, "pi-1"), next(pack_rows("r", 7, labels(), 0)))
    session.drain()
    assert port.sent == []
    assert rejected(port, session) == 0


def labels(rows: int = 5000, classes: int = 500) -> SoftLabels:
    """5 MB, which is two messages."""
    return SoftLabels(1, torch.full((rows, classes), 1 / 512).half())


def test_fetch_of_soft_labels_survives_wrong_and_lost_messages(
    port: FakePort, clock: FakeClock, session: Session
) -> None:
    whole = labels()
    beyond = SoftLabelRows(
        run="r", round=1, attempt=7, first=0, rows=encode_tensor("fp16", torch.zeros(5001, 500).numpy())
    )

    def respond(sync: Sync) -> None:
        assert sync.soft_labels is not None
        topic = routes.SOFT_LABELS.topic(TOPICS, "pi-1")
        if len(requested) == 1:
            port.deliver(topic, beyond.encode())
        elif len(requested) > 2:  # the second reply is lost
            for payload in pack_rows("r", 7, whole, sync.soft_labels):
                port.deliver(topic, payload)

    requested = serve(port, respond)
    started = clock()
    found = session.requests.fetch_soft_labels(SoftLabelsAssembler("r", 7, 1, 5000, 500))
    assert found.round == 1
    assert torch.equal(found.probabilities, whole.probabilities)
    assert [sync.soft_labels for sync in requested] == [0, 0, 0, 4194]
    assert 30 <= clock() - started <= 32
    assert rejected(port, session) == 1
