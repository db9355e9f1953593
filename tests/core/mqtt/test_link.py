# SPDX-License-Identifier: Apache-2.0
"""The link on real brokers: delivery, retained state, last will, reconnects, bounds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest
from fakes import RecordingMeter
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from splitee.errors import ConfigError
from splitee.mqtt.address import BrokerAddress
from splitee.mqtt.events import Connected, Message, Overflow
from splitee.mqtt.link import Link
from splitee_lab.local.brokers import MOSQUITTO_SETTINGS, RestartableBroker, RunningBroker

DEADLINE = 10.0
MakeLink = Callable[..., Link]
MakeBroker = Callable[..., RestartableBroker]
Messages = Callable[[Link, int], list[Message]]


def test_gathered_messages_arrive_in_order_and_are_acknowledged(
    messages: Messages, broker: RunningBroker, make_link: MakeLink, base: str
) -> None:
    reader = make_link(broker.address, "reader", f"{base}/#", read_delay=0.02)
    writer = make_link(broker.address, "writer")
    count = 300
    for number in range(count):
        assert writer.publish(f"{base}/{number % 7}", b"%d" % number)
    assert [int(message.payload) for message in messages(reader, count)] == list(range(count))
    assert reader.publish(f"{base}/own", b"300")
    assert reader.flush(DEADLINE)
    assert messages(reader, 1) == [Message(f"{base}/own", b"300")]


@pytest.mark.parametrize("size", [0, 1, 1_000_000])
def test_published_message_arrives_whole_and_is_metered(
    messages: Messages, broker: RunningBroker, make_link: MakeLink, base: str, size: int
) -> None:
    payload = os.urandom(size)
    reader = make_link(broker.address, "reader", f"{base}/#")
    writer = make_link(broker.address, "writer")
    reader.meter, writer.meter = got, put = RecordingMeter(), RecordingMeter()
    assert writer.publish(
        f"{base}/x", memoryview(payload), expiry=60, response_topic=f"{base}/answer", correlation=b"\x00\xff7"
    )
    assert messages(reader, 1) == [Message(f"{base}/x", payload, False, f"{base}/answer", b"\x00\xff7")]
    assert writer.flush(DEADLINE)
    properties = 1 + 5 + (3 + len(f"{base}/answer")) + (3 + 3)  # length, expiry, response topic, correlation
    headers = 2 + len(f"{base}/x") + 2 + properties  # topic and packet identifier before them
    length = 1 + (headers + size >= 1 << 7) + (headers + size >= 1 << 14)  # bytes of the packet's own length
    assert put.sent == [(f"{base}/x", size, 1 + length + headers)]
    assert got.incoming == put.sent
    assert reader.publish(f"{base}/y", b"to oneself")
    assert messages(reader, 1) == [Message(f"{base}/y", b"to oneself")]


def test_messages_of_parallel_threads_keep_the_order_of_each_thread(
    messages: Messages, broker: RunningBroker, make_link: MakeLink, base: str
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


def test_retained_message_reaches_late_readers_until_cleared(
    messages: Messages, broker: RunningBroker, make_link: MakeLink, base: str
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


def test_subscription_after_open_works_at_once(
    messages: Messages, broker: RunningBroker, make_link: MakeLink, base: str
) -> None:
    link = make_link(broker.address)
    link.subscribe(base)
    link.publish(base, b"x")
    assert messages(link, 1) == [Message(base, b"x")]


def test_more_filters_than_a_packet_holds_are_subscribed_to_now_and_at_each_connection(
    messages: Messages, mosquitto_broker: RunningBroker, make_link: MakeLink, base: str
) -> None:
    filters = [f"{base}/{number:05}/{100 * 'x'}" for number in range(16_000)]
    link = make_link(mosquitto_broker.address)
    link.subscribe(*filters)
    link.publish(filters[-1], b"x")
    assert messages(link, 1) == [Message(filters[-1], b"x")]
    later = make_link(mosquitto_broker.address, "later", *filters)
    later.unsubscribe(*filters[1:])
    for name in (filters[-1], filters[0]):
        later.publish(name, b"y")
    assert messages(later, 1) == [Message(filters[0], b"y")]


class SlowFilter(str):
    """A filter that another thread's `subscribe` overtakes while it is sent."""

    overtaking: threading.Thread

    def encode(self, *arguments: str) -> bytes:
        if self.overtaking.ident is None:
            self.overtaking.start()
            self.overtaking.join(0.5)
        return super().encode(*arguments)


def test_subscription_while_the_link_connects_is_not_lost(
    messages: Messages, broker: RunningBroker, base: str
) -> None:
    link = Link(broker.address, "link")
    first = SlowFilter(f"{base}/first")
    first.overtaking = threading.Thread(target=link.subscribe, args=(f"{base}/second",))
    link.subscribe(first)
    link.open(DEADLINE)
    first.overtaking.join(DEADLINE)
    assert link.receive(DEADLINE) == Connected(fresh=True)
    link.publish(f"{base}/second", b"x")
    link.publish(f"{base}/first", b"y")
    assert messages(link, 2) == [Message(f"{base}/second", b"x"), Message(f"{base}/first", b"y")]
    link.close()


MORTAL = """
import sys, time
from splitee.mqtt.address import BrokerAddress
from splitee.mqtt.link import Link
link = Link(BrokerAddress.parse(sys.argv[1]), "mortal", will=(sys.argv[2], b"offline"))
link.open(10)
link.publish(sys.argv[2], b"online", retain=True)
time.sleep(60)
"""


def test_last_will_of_a_killed_process_is_published_and_retained(
    messages: Messages, broker: RunningBroker, make_link: MakeLink, base: str
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


def test_clean_close_publishes_the_farewell_and_no_last_will(
    messages: Messages, broker: RunningBroker, make_link: MakeLink, base: str
) -> None:
    reader = make_link(broker.address, "reader", f"{base}/#")
    link = make_link(broker.address, "leaver", will=(f"{base}/status", b"vanished"))
    link.close(offline_message=(f"{base}/status", b"left"))
    assert not link.connected
    assert not link.publish(f"{base}/status", b"too late")
    link.close()
    reader.publish(f"{base}/end", b"")
    assert [message.payload for message in messages(reader, 2)] == [b"left", b""]


def test_last_will_is_published_if_the_farewell_is_not_delivered(
    messages: Messages, make_broker: MakeBroker, make_link: MakeLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("splitee.mqtt.link.CONNECT_LIMIT", 0.2)
    own = make_broker("mosquitto")
    process = own.broker.process if own.broker else None
    assert process is not None
    reader = make_link(own.address, "reader", "status")
    link = make_link(own.address, "leaver", will=("status", b"vanished"))
    process.send_signal(signal.SIGSTOP)
    link.publish("other", b"")
    link.close(offline_message=("status", b"left"))
    process.send_signal(signal.SIGCONT)
    assert messages(reader, 1) == [Message("status", b"vanished")]


@pytest.mark.parametrize("client_id", ["", "a/b", "+", "a#", "$a"])
def test_client_id_that_is_empty_or_has_topic_characters_is_refused(client_id: str) -> None:
    with pytest.raises(ConfigError, match="expected a name without"):
        Link(BrokerAddress("127.0.0.1", 1883), client_id)


def test_oversize_message_is_refused_and_the_link_works_on(
    messages: Messages, broker: RunningBroker, make_link: MakeLink, base: str
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
def test_packet_limit_of_the_broker_is_obeyed(
    messages: Messages, make_broker: MakeBroker, make_link: MakeLink
) -> None:
    settings = MOSQUITTO_SETTINGS.replace("max_packet_size 2097152", "max_packet_size 3000")
    link = make_link(make_broker("mosquitto", settings).address, "link", "t")
    assert 1900 < link.max_packet < 3000
    with pytest.raises(ValueError, match="expected at most"):
        link.publish("t", bytes(link.max_packet + 1))
    assert link.publish("t", bytes(link.max_packet))
    assert len(messages(link, 1)[0].payload) == link.max_packet


def test_unread_events_are_bounded_and_dropped_ones_counted(
    messages: Messages,
    broker: RunningBroker,
    make_link: MakeLink,
    base: str,
    caplog: pytest.LogCaptureFixture,
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
    assert reader.receive(0) == Overflow()
    assert reader.receive(0) is None
    assert caplog.text.count("event queue full") == 1


@pytest.mark.mosquitto
def test_closing_with_unread_messages_leaves_no_session_behind(
    mosquitto_broker: RunningBroker, make_link: MakeLink
) -> None:
    """For a session that stays, the broker goes on to keep all that is published to it."""
    address = mosquitto_broker.address
    writer = make_link(address, "writer")
    for attempt in range(10):  # without a remedy about one session in four stays
        name = f"unread-{attempt}"
        reader = Link(address, name)
        reader.subscribe(name)
        reader.open(DEADLINE)
        for _ in range(40):
            assert writer.publish(name, bytes(500_000))
        reader.close()
        assert not session_of(address, name), attempt


def session_of(address: BrokerAddress, name: str) -> bool:
    """Whether the broker has kept the client's session; this call ends it."""
    present: list[bool] = []
    client = Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=MQTTProtocolVersion.MQTTv5)
    client.on_connect = lambda _client, _data, flags, _reason, _properties: present.append(
        flags.session_present
    )
    client.connect(address.host, address.port, clean_start=False)
    deadline = time.monotonic() + DEADLINE
    while not present and time.monotonic() < deadline:
        client.loop(0.1)
    client.disconnect()
    client.loop(0.1)
    return present[0]


@pytest.mark.mosquitto
def test_age_of_a_retained_message_is_known(
    mosquitto_broker: RunningBroker, make_link: Callable[..., Link], base: str
) -> None:
    writer = make_link(mosquitto_broker.address, "writer")
    assert writer.publish(base, b"kept", retain=True) and writer.flush(DEADLINE)
    started = time.monotonic()
    reader = make_link(mosquitto_broker.address, "reader")
    ages = []
    while not ages or ages[-1] is None:
        reader.subscribe(base)
        message = reader.receive(DEADLINE)
        assert isinstance(message, Message) and message.retained
        ages.append(message.age)
        reader.unsubscribe(base)
    assert 1 <= ages[-1] <= time.monotonic() - started + 1
