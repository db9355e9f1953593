# SPDX-License-Identifier: Apache-2.0
"""A link that loses its broker or its network reconnects, and loses no message that it has taken."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from itertools import repeat

import pytest
from proxy import Proxy
from waiting import until

from splitee.errors import BrokerUnreachable
from splitee.mqtt import link as link_module
from splitee.mqtt.address import BrokerAddress
from splitee.mqtt.events import Connected, Disconnected, Event, Message
from splitee.mqtt.link import Link
from splitee_lab.local.brokers import RestartableBroker, RunningBroker

DEADLINE = 10.0
MakeLink = Callable[..., Link]
MakeBroker = Callable[..., RestartableBroker]
Messages = Callable[[Link, int], list[Message]]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that lose the connection several times."""
    monkeypatch.setattr("splitee.mqtt.link.delays", lambda: repeat(0.05))


def wait_for(link: Link, kind: type[Event]) -> Event:
    """The next event of the kind; events before it are skipped."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        event = link.receive(0.1)
        if isinstance(event, kind):
            return event
    raise AssertionError(f"no {kind.__name__} within {DEADLINE} s")


def test_clients_reconnect_to_a_broker_that_was_killed(
    messages: Messages,
    make_broker: MakeBroker,
    broker_kind: str,
    make_link: MakeLink,
    caplog: pytest.LogCaptureFixture,
) -> None:
    own = make_broker(broker_kind)
    reader = make_link(own.address, "reader", "state/#", "later")
    writer = make_link(own.address, "writer")
    writer.publish("state/a", b"before")
    assert messages(reader, 1) == [Message("state/a", b"before")]
    assert writer.flush(DEADLINE)  # else the message is sent again
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


@pytest.mark.slow(6)
def test_silent_network_is_detected_with_a_doubling_timeout(
    mosquitto_broker: RunningBroker, make_link: MakeLink, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = Proxy(mosquitto_broker.address)
    link = make_link(proxy.address, "in a black hole", keepalive=1)
    proxy.swallows.set()
    started = time.monotonic()
    assert wait_for(link, Disconnected) == Disconnected("nothing came for too long")
    assert time.monotonic() - started < 2 * 1 + 2
    proxy.swallows.clear()
    assert wait_for(link, Connected) == Connected(fresh=True)
    proxy.swallows.set()
    started = time.monotonic()
    assert wait_for(link, Disconnected) == Disconnected("nothing came for too long")
    assert time.monotonic() - started > 2 * 2 - 1, "it may be slow: it gets twice as long"
    assert "defect" not in caplog.text
    proxy.close()


def test_kept_session_delivers_messages_sent_during_a_network_cut(
    messages: Messages, mosquitto_broker: RunningBroker, make_link: MakeLink, base: str
) -> None:
    proxy = Proxy(mosquitto_broker.address)
    reader = make_link(proxy.address, "reader behind a proxy", base, session_expiry=60)
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


def test_unacknowledged_messages_are_sent_again_after_a_network_cut(
    messages: Messages, quick: None, mosquitto_broker: RunningBroker, make_link: MakeLink, base: str
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


def test_new_process_receives_no_messages_of_the_old_session(
    messages: Messages, quick: None, mosquitto_broker: RunningBroker, make_link: MakeLink, base: str
) -> None:
    proxy = Proxy(mosquitto_broker.address)
    make_link(proxy.address, "same id", base, session_expiry=60)
    proxy.blocked.set()
    proxy.cut()
    writer = make_link(mosquitto_broker.address, "writer")
    writer.publish(base, b"for the one before")
    assert writer.flush(DEADLINE)
    successor = make_link(mosquitto_broker.address, "same id", base, f"{base}/end")
    writer.publish(f"{base}/end", b"")
    assert messages(successor, 1) == [Message(f"{base}/end", b"")]
    proxy.close()


def test_clients_with_one_id_disconnect_each_other(broker: RunningBroker, make_link: MakeLink) -> None:
    first = make_link(broker.address, "twin")
    second = make_link(broker.address, "twin")
    assert isinstance(first.receive(DEADLINE), Disconnected)
    assert isinstance(first.receive(DEADLINE), Connected)
    assert isinstance(second.receive(DEADLINE), Disconnected)


def test_unreachable_broker_does_not_fill_the_log(
    quick: None, mosquitto_broker: RunningBroker, make_link: MakeLink, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = Proxy(mosquitto_broker.address)
    link = make_link(proxy.address, "cut off")
    proxy.blocked.set()
    proxy.cut()
    until(lambda: proxy.refused >= 20)
    assert 3 <= caplog.text.count("next try in") <= 7
    proxy.blocked.clear()
    assert wait_for(link, Connected)
    proxy.close()


def test_open_without_a_broker_raises_at_its_timeout(caplog: pytest.LogCaptureFixture) -> None:
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


def test_open_waits_for_a_broker_that_starts_late(make_broker: MakeBroker, broker_kind: str) -> None:
    own = make_broker(broker_kind)
    own.kill()
    link = Link(own.address, "early")
    opener = threading.Thread(target=link.open, args=(None,))
    opener.start()
    own.start()
    opener.join(DEADLINE)
    assert link.receive(DEADLINE) == Connected(fresh=True)
    link.close()


def test_close_ends_a_waiting_open() -> None:
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


def test_open_returns_when_its_stop_condition_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = BrokerAddress("127.0.0.1", taken.getsockname()[1])
    monkeypatch.setattr(link_module, "delays", lambda: iter([DEADLINE] * 2))
    link = Link(address, "link")
    started = time.monotonic()
    link.open(None, lambda: time.monotonic() - started > 0.5)
    assert 0.5 < time.monotonic() - started < DEADLINE / 2
    assert not link.connected
    link.close()
