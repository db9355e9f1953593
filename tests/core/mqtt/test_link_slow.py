# SPDX-License-Identifier: Apache-2.0
"""A slow link is not taken for dead, and a small message does not wait for all of a large one."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from fakes import FakeClock
from hypothesis import given
from hypothesis import strategies as st
from slow_proxy import SlowProxy

from splitee.mqtt.events import Connected, Disconnected, Message
from splitee.mqtt.link import Link
from splitee.mqtt.read_ahead import AHEAD, ReadAhead
from splitee.mqtt.sending_speed import IN_FLIGHT_SECONDS, LEAST_PART, PART_SECONDS, SendingSpeed
from splitee.protocol.parts import Assembler, publish_in_parts
from splitee_lab.local.brokers import RunningBroker

pytestmark = pytest.mark.mosquitto

RATE = 100_000.0  # bytes a second
LARGE = 800_000  # bytes: eight seconds of it
LONG = 60.0

MakeLink = Callable[..., Link]


@pytest.fixture
def proxy(mosquitto_broker: RunningBroker) -> Iterator[SlowProxy]:
    proxy = SlowProxy(mosquitto_broker.address, RATE)
    yield proxy
    proxy.close()


def receive(link: Link) -> list[Message]:
    """The messages until one on the topic "end"; there must be no other event but the first `Connected`."""
    messages: list[Message] = []
    while not messages or messages[-1].topic != "end":
        event = link.receive(LONG)
        assert event is not None
        assert not isinstance(event, Disconnected), event
        if isinstance(event, Message):
            messages.append(event)
    return messages


def arrivals(link: Link) -> Iterator[tuple[float, Message]]:
    """When each message came, until one on the topic "end"."""
    while (event := link.receive(LONG)) is not None:
        if isinstance(event, Message):
            if event.topic == "end":
                return
            yield time.monotonic(), event


@pytest.mark.slow(4)
def test_connection_survives_a_message_slower_than_the_keep_alive(
    make_link: MakeLink, mosquitto_broker: RunningBroker, proxy: SlowProxy, base: str
) -> None:
    reader = make_link(proxy.address, "slow reader", base, "end", keepalive=1)
    writer = make_link(mosquitto_broker.address, "fast writer")
    size = LARGE // 2  # four seconds, and a silence of two ends a connection with this keep-alive
    assert writer.publish(base, bytes(size))
    assert writer.publish("end", b"")
    assert [len(message.payload) for message in receive(reader)] == [size, 0]
    assert not isinstance(reader.receive(0.2), Disconnected | Connected)


@pytest.mark.slow(8)
def test_large_message_on_a_slow_link_arrives_whole_and_delays_no_status(
    make_link: MakeLink, mosquitto_broker: RunningBroker, proxy: SlowProxy, base: str
) -> None:
    reader = make_link(mosquitto_broker.address, "fast reader", base, "end", f"{base}/status")
    writer = make_link(proxy.address, "slow writer", keepalive=2)
    sent: list[float] = []
    came: list[tuple[float, Message]] = []
    collector = threading.Thread(target=lambda: came.extend(arrivals(reader)), daemon=True)
    collector.start()

    def publish_status() -> None:
        sent.append(time.monotonic())
        assert writer.publish(f"{base}/status", str(len(sent) - 1).encode())

    payload = bytes(range(256)) * (LARGE // 256)
    assert publish_in_parts(writer, base, payload, meanwhile=publish_status)
    assert writer.publish("end", b"")
    collector.join(LONG)
    assembler = Assembler()
    joined = [assembler.add("writer", message.payload) for _, message in came if message.topic == base]
    assert joined[-1] == payload
    late = [at - sent[int(message.payload)] for at, message in came if message.topic != base]
    assert len(late) > 5
    assert max(late) < 1.5 * IN_FLIGHT_SECONDS, late  # behind the whole message it would be eight seconds
    assert writer.receive(0) is None, "the connection was lost"
    assert writer.speed is not None
    assert RATE / 3 < writer.speed < 3 * RATE
    assert writer.part_size < 3 * RATE


def test_sending_speed_is_measured_from_acknowledged_bytes() -> None:
    clock = FakeClock()
    speed = SendingSpeed(clock)
    assert speed.rate is None
    for _ in range(50):  # four under way, one acknowledged each half second
        stamps = [speed.stamp() for _ in range(4)]
        for stamp in stamps:
            clock.advance(0.5)
            speed.note(50_000, stamp)
    assert speed.rate == pytest.approx(100_000)
    assert (speed.max_in_flight, speed.part) == (
        pytest.approx(IN_FLIGHT_SECONDS * 1e5),
        pytest.approx(PART_SECONDS * 1e5),
    )
    for _ in range(50):
        stamp = speed.stamp()
        clock.advance(10)
        speed.note(100, stamp)
        speed.note(50_000, None)
    assert speed.rate == pytest.approx(100_000), "a small message, or one that was sent twice, tells nothing"
    for _ in range(50):
        stamp = speed.stamp()
        clock.advance(100)
        speed.note(50_000, stamp)
    assert speed.part == LEAST_PART


@given(
    sent=st.binary(max_size=3000).map(lambda data: data * 100),
    sizes=st.lists(st.integers(1, 2 * AHEAD), min_size=1),
)
def test_reading_ahead_changes_no_byte(sent: bytes, sizes: list[int]) -> None:
    near, far = socket.socketpair()
    with near, far:
        far.setblocking(False)
        reader, came, rest = ReadAhead(far), b"", sent
        while len(came) < len(sent):
            rest = rest[near.send(rest[:50_000]) :] if rest and reader.pending() == 0 else rest
            size = sizes[len(came) % len(sizes)]
            data = reader.recv(size)
            assert 0 < len(data) <= size
            came += data
        assert came == sent
        assert reader.pending() == 0
        with pytest.raises(BlockingIOError):
            reader.recv(1)
