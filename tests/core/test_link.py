"""The link on real brokers: delivery, retained state, last will, reconnects, bounds."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import repeat

import pytest

from splitee.errors import BrokerUnreachable
from splitee.link import BrokerAddress, Connected, Disconnected, Event, Link, Message
from splitee_lab.brokers import MOSQUITTO_SETTINGS, OwnBroker, RunningBroker

DEADLINE = 10.0
MakeLink = Callable[..., Link]
MakeBroker = Callable[..., OwnBroker]


@pytest.fixture
def base(request: pytest.FixtureRequest) -> str:
    """A topic of the test's own: the brokers are shared."""
    return f"test/{request.node.name}".replace("[", "/").replace("]", "")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that lose the connection several times."""
    monkeypatch.setattr("splitee.link.delays", lambda: repeat(0.05))


@pytest.fixture
def make_link() -> Iterator[MakeLink]:
    with ExitStack() as stack:

        def make(address: BrokerAddress, client_id: str = "link", *filters: str, **options: object) -> Link:
            link = Link(address, client_id, **options)  # type: ignore[arg-type]
            link.subscribe(*filters)
            stack.callback(link.close)
            link.open(DEADLINE)
            event = link.receive(DEADLINE)
            assert isinstance(event, Connected)
            return link

        yield make


def messages(link: Link, count: int) -> list[Message]:
    received = [link.receive(DEADLINE) for _ in range(count)]
    assert all(isinstance(event, Message) for event in received), received
    return [event for event in received if isinstance(event, Message)]


def wait_for(link: Link, kind: type[Event]) -> Event:
    """The next event of the kind; those before it are passed over."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        event = link.receive(0.1)
        if isinstance(event, kind):
            return event
    raise AssertionError(f"no {kind.__name__} within {DEADLINE} s")


@pytest.mark.parametrize("size", [0, 1, 1_000_000])
def test_what_is_published_arrives_whole(
    broker: RunningBroker, make_link: MakeLink, base: str, size: int
) -> None:
    payload = os.urandom(size)
    reader = make_link(broker.address, "reader", f"{base}/#")
    writer = make_link(broker.address, "writer")
    assert writer.publish(
        f"{base}/x", memoryview(payload), expiry=60, response_topic=f"{base}/answer", correlation=b"\x00\xff7"
    )
    assert messages(reader, 1) == [Message(f"{base}/x", payload, False, f"{base}/answer", b"\x00\xff7")]
    assert writer.flush(DEADLINE)
    assert writer.bytes_published == size
    assert reader.publish(f"{base}/y", b"to oneself")
    assert messages(reader, 1) == [Message(f"{base}/y", b"to oneself")]


def test_many_threads_publish_in_the_order_of_each(
    broker: RunningBroker, make_link: MakeLink, base: str
) -> None:
    reader = make_link(broker.address, "reader", f"{base}/+")
    writer = make_link(broker.address, "writer")
    padding = bytes(20_000)

    def publish(thread: int) -> None:
        for number in range(50):
            assert writer.publish(f"{base}/{thread}", number.to_bytes(2, "big") + padding)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    received: dict[str, list[int]] = {}
    for message in messages(reader, 200):
        assert message.payload[2:] == padding
        received.setdefault(message.topic, []).append(int.from_bytes(message.payload[:2], "big"))
    for thread in threads:
        thread.join()
    assert received == {f"{base}/{number}": list(range(50)) for number in range(4)}


def test_retained_state_greets_a_late_reader_until_it_is_cleared(
    broker: RunningBroker, make_link: MakeLink, base: str
) -> None:
    writer = make_link(broker.address, "writer")
    writer.publish(base, b"round 3", retain=True)
    assert writer.flush(DEADLINE)
    late = make_link(broker.address, "late", base)
    assert messages(late, 1) == [Message(base, b"round 3", retained=True)]
    writer.publish(base, b"", retain=True)
    assert messages(late, 1)[0].payload == b""
    later = make_link(broker.address, "later", base, f"{base}/end")
    later.publish(f"{base}/end", b"")
    assert messages(later, 1) == [Message(f"{base}/end", b"")]


def test_a_subscription_after_open_works_at_once(
    broker: RunningBroker, make_link: MakeLink, base: str
) -> None:
    link = make_link(broker.address)
    link.subscribe(base)
    link.publish(base, b"x")
    assert messages(link, 1) == [Message(base, b"x")]


MORTAL = """
import sys, time
from splitee.link import BrokerAddress, Link
link = Link(BrokerAddress.parse(sys.argv[1]), "mortal", will=(sys.argv[2], b"offline"))
link.open(10)
link.publish(sys.argv[2], b"online", retain=True)
time.sleep(60)
"""


def test_the_last_will_speaks_for_who_was_killed(
    broker: RunningBroker, make_link: MakeLink, base: str
) -> None:
    reader = make_link(broker.address, "reader", base)
    mortal = subprocess.Popen([sys.executable, "-c", MORTAL, str(broker.address), base])
    try:
        assert messages(reader, 1) == [Message(base, b"online")]
    finally:
        mortal.send_signal(signal.SIGKILL)
        mortal.wait()
    assert messages(reader, 1) == [Message(base, b"offline")]
    assert messages(make_link(broker.address, "late", base), 1) == [Message(base, b"offline", retained=True)]


def test_a_clean_close_leaves_the_farewell_and_no_will(
    broker: RunningBroker, make_link: MakeLink, base: str
) -> None:
    reader = make_link(broker.address, "reader", f"{base}/#")
    link = make_link(broker.address, "leaver", will=(f"{base}/status", b"vanished"))
    link.close(farewell=(f"{base}/status", b"left"))
    assert not link.connected
    assert not link.publish(f"{base}/status", b"too late")
    link.close()
    reader.publish(f"{base}/end", b"")
    assert [message.payload for message in messages(reader, 2)] == [b"left", b""]


def test_a_broker_that_was_killed_is_found_again(
    make_broker: MakeBroker, broker_kind: str, make_link: MakeLink, caplog: pytest.LogCaptureFixture
) -> None:
    own = make_broker(broker_kind)
    reader = make_link(own.address, "reader", "state/#", "later")
    writer = make_link(own.address, "writer")
    writer.publish("state/a", b"before")
    assert messages(reader, 1) == [Message("state/a", b"before")]
    own.kill()
    assert isinstance(reader.receive(DEADLINE), Disconnected)
    assert isinstance(writer.receive(DEADLINE), Disconnected)
    assert not writer.publish("state/a", b"nobody hears this")
    assert not writer.connected
    own.start()
    assert reader.receive(DEADLINE) == Connected(fresh=True)
    assert writer.receive(DEADLINE) == Connected(fresh=True)
    assert writer.publish("state/a", b"after")
    assert writer.publish("later", b"too")
    assert messages(reader, 2) == [Message("state/a", b"after"), Message("later", b"too")]
    assert "next try in" in caplog.text


class Proxy:
    """A TCP relay that can cut its connections: the network between a link and a broker that lives on."""

    def __init__(self, target: BrokerAddress) -> None:
        self._target = (target.host, target.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = BrokerAddress("127.0.0.1", self._listener.getsockname()[1])
        self._open: list[socket.socket] = []
        self.blocked = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self.blocked.is_set():
                near.close()
                continue
            far = socket.create_connection(self._target)
            self._open += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._relay, args=(source, sink), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass

    def cut(self) -> None:
        for connection in self._open:
            connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self._open.clear()

    def close(self) -> None:
        self._listener.close()
        self.cut()


def test_a_kept_session_delivers_what_came_while_the_network_was_cut(
    mosquitto_broker: RunningBroker, make_link: MakeLink, base: str
) -> None:
    proxy = Proxy(mosquitto_broker.address)
    reader = make_link(proxy.address, "reader behind a proxy", base)
    writer = make_link(mosquitto_broker.address, "writer")
    proxy.blocked.set()
    proxy.cut()
    assert isinstance(wait_for(reader, Disconnected), Disconnected)
    assert writer.publish(base, b"meanwhile")
    assert writer.flush(DEADLINE)
    proxy.blocked.clear()
    assert reader.receive(DEADLINE) == Connected(fresh=False)
    assert messages(reader, 1) == [Message(base, b"meanwhile")]
    reader.close()
    proxy.close()


def test_what_was_unacknowledged_when_the_network_was_cut_is_sent_again(
    quick: None, mosquitto_broker: RunningBroker, make_link: MakeLink, base: str
) -> None:
    proxy = Proxy(mosquitto_broker.address)
    reader = make_link(mosquitto_broker.address, "reader", base)
    writer = make_link(proxy.address, "writer behind a proxy")
    sent = 0
    for cut_after in (40, 90, 140):
        while sent < cut_after:
            sent += writer.publish(base, sent.to_bytes(2, "big") + bytes(50_000))
        proxy.cut()
        wait_for(writer, Connected)
    writer.publish(base, b"end")
    assert writer.flush(DEADLINE)
    received = []
    while (message := messages(reader, 1)[0]).payload != b"end":
        received.append(int.from_bytes(message.payload[:2], "big"))
    assert sorted(set(received)) == list(range(sent))
    writer.close()
    proxy.close()


def test_a_new_process_finds_nothing_left_of_the_one_before(
    quick: None, mosquitto_broker: RunningBroker, make_link: MakeLink, base: str
) -> None:
    proxy = Proxy(mosquitto_broker.address)
    make_link(proxy.address, "same id", base)
    proxy.blocked.set()
    proxy.cut()
    writer = make_link(mosquitto_broker.address, "writer")
    writer.publish(base, b"for the one before")
    assert writer.flush(DEADLINE)
    successor = make_link(mosquitto_broker.address, "same id", base, f"{base}/end")
    writer.publish(f"{base}/end", b"")
    assert messages(successor, 1) == [Message(f"{base}/end", b"")]
    proxy.close()


def test_two_clients_with_one_id_both_hear_of_it(
    broker: RunningBroker, make_link: MakeLink, base: str
) -> None:
    first = make_link(broker.address, base)
    second = make_link(broker.address, base)
    assert isinstance(first.receive(DEADLINE), Disconnected)
    assert isinstance(first.receive(DEADLINE), Connected)
    assert isinstance(second.receive(DEADLINE), Disconnected)


def test_an_oversize_message_is_refused_and_harms_nothing(
    broker: RunningBroker, make_link: MakeLink, base: str
) -> None:
    link = make_link(broker.address, "link", base, max_packet=5000)
    assert link.max_packet < 5000
    with pytest.raises(
        ValueError, match=f"expected at most {link.max_packet} bytes.* has {link.max_packet + 1}"
    ):
        link.publish(base, bytes(link.max_packet + 1))
    with pytest.raises(ValueError, match="with topics and correlation"):
        link.publish(base, b"", correlation=bytes(1000))
    assert link.publish(base, bytes(link.max_packet))
    assert len(messages(link, 1)[0].payload) == link.max_packet


@pytest.mark.mosquitto
def test_the_brokers_limit_on_packets_counts(make_broker: MakeBroker, make_link: MakeLink) -> None:
    settings = MOSQUITTO_SETTINGS.replace("max_packet_size 16777216", "max_packet_size 3000")
    link = make_link(make_broker("mosquitto", settings).address, "link", "t")
    assert 1900 < link.max_packet < 3000
    with pytest.raises(ValueError, match="expected at most"):
        link.publish("t", bytes(link.max_packet + 1))
    assert link.publish("t", bytes(link.max_packet))
    assert len(messages(link, 1)[0].payload) == link.max_packet


def test_events_that_nobody_receives_are_bounded_and_counted(
    broker: RunningBroker, make_link: MakeLink, base: str, caplog: pytest.LogCaptureFixture
) -> None:
    reader = make_link(broker.address, "reader", base, capacity=10)
    other = make_link(broker.address, "other", base)
    for number in range(50):
        assert reader.publish(base, bytes([number]))
    messages(other, 50)
    assert reader.flush(DEADLINE)
    reader.publish(base, b"last")
    messages(other, 1)
    deadline = time.monotonic() + DEADLINE
    while reader.dropped < 41 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert reader.dropped == 41
    assert [message.payload[0] for message in messages(reader, 10)] == list(range(10))
    assert reader.receive(0) is None
    assert caplog.text.count("event queue full") == 1


def test_nobody_there(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    link = Link(BrokerAddress("127.0.0.1", port), "link")
    started = time.monotonic()
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(BrokerUnreachable, match=rf"no broker at mqtt://127.0.0.1:{port} .*Connection refused"),
    ):
        link.open(1.5)
    assert 1.5 <= time.monotonic() - started < 5
    assert f"broker mqtt://127.0.0.1:{port} not reachable (Connection refused); next try in" in caplog.text
    assert not link.publish("t", b"nobody")


def test_a_broker_that_comes_up_late_is_found(make_broker: MakeBroker, broker_kind: str) -> None:
    own = make_broker(broker_kind)
    own.kill()
    link = Link(own.address, "early")
    opener = threading.Thread(target=link.open, args=(None,))
    opener.start()
    own.start()
    opener.join(DEADLINE)
    assert link.receive(DEADLINE) == Connected(fresh=True)
    link.close()


def test_close_ends_an_open_that_waits() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = BrokerAddress("127.0.0.1", taken.getsockname()[1])
    link = Link(address, "link")
    raised: list[Exception] = []

    def attempt() -> None:
        try:
            link.open(None)
        except BrokerUnreachable as error:
            raised.append(error)

    opener = threading.Thread(target=attempt)
    opener.start()
    link.close()
    opener.join(DEADLINE)
    assert not opener.is_alive()
    assert len(raised) == 1
