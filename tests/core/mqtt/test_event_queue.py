# SPDX-License-Identifier: Apache-2.0
"""The queue of a link's events: bounded, with a mark where messages were dropped."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from splitee.errors import BrokerRefused
from splitee.mqtt.event_queue import RESERVE, EventQueue
from splitee.mqtt.events import Connected, Disconnected, Event, Message, Overflow
from splitee.protocol import routes
from splitee.protocol.rounds import Sync
from splitee.protocol.topics import Topics

TOPICS = Topics("fleet")
STATUS, FEATURES, SYNC = (
    route.topic(TOPICS, "pi-1") for route in (routes.STATUS, routes.FEATURES, routes.SYNC)
)


def contents(queue: EventQueue) -> Iterator[Event]:
    while (event := queue.get(0)) is not None:
        yield event


def latest(capacity: int = 100, size: int = 1000) -> EventQueue:
    return EventQueue(capacity, size, lambda message: routes.latest_key(TOPICS, message))


def test_dropped_messages_are_marked_by_overflow() -> None:
    queue = EventQueue(2, 1000)
    one, two, three, four = (Message(FEATURES, bytes([number])) for number in range(4))
    for message in (one, two, three, four):
        queue.put(message)
    assert queue.get(0) == one
    assert queue.get(0) == two
    queue.put(one)
    queue.put(two)
    assert list(contents(queue)) == [Overflow(), one, Overflow()]
    assert queue.dropped == 3


def test_too_large_message_is_replaced_by_overflow() -> None:
    queue = EventQueue(2, 10)
    queue.put(Message(FEATURES, bytes(11)))
    assert list(contents(queue)) == [Overflow()]


def test_data_beside_the_payload_counts_towards_the_bytes() -> None:
    queue = EventQueue(100, 1000)
    for _ in range(5):
        queue.put(Message(FEATURES, b"x", response_topic=200 * "r", correlation=bytes(199)))
    kept = [event for event in contents(queue) if isinstance(event, Message)]
    assert (len(kept), queue.dropped) == (2, 3)
    queue.put(Message(FEATURES, bytes(1000)))
    assert queue.get(0) == Message(FEATURES, bytes(1000))


def test_flood_of_messages_hides_no_disconnect_or_error() -> None:
    queue = EventQueue(2, 1000)
    for number in range(2 + RESERVE):
        queue.put(Message(FEATURES, bytes([number % 256])))
    queue.put(Disconnected("no route"))
    queue.put(BrokerRefused("denies reading"))
    for _ in range(4):
        event = queue.get(0)
    assert event == Disconnected("no route")
    with pytest.raises(BrokerRefused):
        queue.get(0)


def test_queued_status_of_a_device_is_replaced_by_the_latest_one() -> None:
    queue = latest()
    queue.put(Message(STATUS, b"first"))
    queue.put(Message(FEATURES, b"batch"))
    queue.put(Message(STATUS, b"second"))
    queue.put(Message(FEATURES, b"batch"))
    payloads = [event.payload for event in contents(queue) if isinstance(event, Message)]
    assert payloads == [b"second", b"batch", b"batch"]
    queue.put(Message(STATUS, b"third"))
    assert list(contents(queue)) == [Message(STATUS, b"third")]


def test_repeated_sync_request_is_queued_once() -> None:
    queue = latest()
    where, weights = (Sync(run="r", instance=1, weights=names).encode() for names in ((), ("a",)))
    for payload in (where, weights, where, where):
        queue.put(Message(SYNC, payload))
    assert [event.payload for event in contents(queue) if isinstance(event, Message)] == [where, weights]


def test_unread_heartbeats_take_one_place_per_device() -> None:
    queue = latest(capacity=10, size=1000)
    for second in range(500):
        for device in range(10):
            queue.put(Message(TOPICS.device(f"pi-{device}", "status"), str(second).encode()))
    assert queue.dropped == 0
    assert [event.payload for event in contents(queue) if isinstance(event, Message)] == 10 * [b"499"]


def test_bytes_of_a_replaced_message_are_freed() -> None:
    queue = latest(size=10)
    for _ in range(5):
        queue.put(Message(STATUS, bytes(8)))
    queue.put(Message(STATUS, bytes(11)))
    assert queue.dropped == 1
    queue.put(Message(FEATURES, bytes(2)))
    assert len([event for event in contents(queue) if isinstance(event, Message)]) == 2


def test_each_clearing_of_a_topic_is_queued_in_its_place() -> None:
    """Otherwise a message after it would take an earlier place, and the reader would end with nothing."""
    queue = latest()
    for payload in (b"first", b"", b"", b"second", b"third"):
        queue.put(Message(STATUS, payload))
    payloads = [event.payload for event in contents(queue) if isinstance(event, Message)]
    assert payloads == [b"first", b"", b"", b"third"]


def test_messages_of_a_new_connection_follow_its_connected_event() -> None:
    queue = latest()
    queue.put(Message(STATUS, b"before"))
    queue.hold()
    queue.put(Message(STATUS, b"after"))
    queue.release(Connected(fresh=True))
    assert list(contents(queue)) == [Message(STATUS, b"before"), Connected(True), Message(STATUS, b"after")]
