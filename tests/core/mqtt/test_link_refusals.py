# SPDX-License-Identifier: Apache-2.0
"""Refusals of a link and their reasons: accounts, denied topics, and servers that are no broker."""

from __future__ import annotations

import logging
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path

import pytest
from fakes import RecordingMeter

from splitee.errors import BrokerRefused, BrokerUnreachable
from splitee.mqtt.address import BrokerAddress
from splitee.mqtt.events import Connected, Disconnected, Message
from splitee.mqtt.link import Link
from splitee_lab.local.brokers import MOSQUITTO_SETTINGS, RestartableBroker

DEADLINE = 10.0
MakeBroker = Callable[..., RestartableBroker]
CONNACK = bytes.fromhex("2003000000")


def refused(address: BrokerAddress) -> str:
    started = time.monotonic()
    with pytest.raises(BrokerRefused) as error:
        Link(address, "link").open(DEADLINE)
    assert time.monotonic() - started < DEADLINE / 2, "a refusal comes at once"
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def guarded(public_path: Path, make_broker: MakeBroker) -> BrokerAddress:
    """Mosquitto with one account, `pi`, that may write under `own/` only."""
    passwords, rules = public_path / "passwords", public_path / "acl"
    passwords.touch(mode=0o600)
    subprocess.run(["mosquitto_passwd", "-b", str(passwords), "pi", "secret"], check=True)
    passwords.chmod(0o644)
    rules.write_text("user pi\ntopic readwrite own/#\n")
    settings = MOSQUITTO_SETTINGS.replace("allow_anonymous true", "allow_anonymous false")
    return make_broker("mosquitto", f"{settings}password_file {passwords}\nacl_file {rules}\n").address


@pytest.mark.mosquitto
def test_wrong_account_is_refused_without_showing_the_password(guarded: BrokerAddress) -> None:
    for username, password in ((None, None), ("pi", "wrong"), ("eve", "secret")):
        line = refused(BrokerAddress(guarded.host, guarded.port, False, username, password))
        assert "refused 'link': not authorized; check user, password, certificate and id" in line
        assert "secret" not in line


@pytest.mark.mosquitto
def test_publications_on_a_denied_topic_are_counted_and_logged_once(
    guarded: BrokerAddress, caplog: pytest.LogCaptureFixture
) -> None:
    link = Link(BrokerAddress(guarded.host, guarded.port, False, "pi", "secret"), "link")
    link.subscribe("own/#")
    link.open(DEADLINE)
    assert link.receive(DEADLINE) == Connected(fresh=True)
    for _ in range(5):
        link.publish("others/state", b"x")
    link.publish("own/state", b"x")
    assert link.receive(DEADLINE) == Message("own/state", b"x")
    assert link.flush(DEADLINE)
    assert link.refused == 5
    assert caplog.text.count("broker refuses what is published on others/state: not authorized") == 1
    link.publish("own/nobody/reads/this", b"x")
    assert link.flush(DEADLINE)
    assert link.refused == 5
    link.close()


class FakeServer:
    """Replies to each packet of a connection with the next bytes given.

    Attributes:
        accepted: the time of each connection.
        connects: number of CONNECT packets of MQTT v5.
    """

    def __init__(self, *replies: bytes, then_close: bool = False) -> None:
        self._replies = replies
        self._then_close = then_close
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = BrokerAddress("127.0.0.1", self._listener.getsockname()[1])
        self.accepted: list[float] = []
        self.connects = 0
        self._open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.accepted.append(time.monotonic())
            self._open.append(connection)
            threading.Thread(target=self._reply, args=(connection,), daemon=True).start()

    def _reply(self, connection: socket.socket) -> None:
        try:
            for reply in self._replies:
                self._read(connection)
                connection.sendall(reply)
            self._read(connection)
            if self._then_close:
                connection.close()
        except OSError:
            pass

    def _read(self, connection: socket.socket) -> None:
        self.connects += b"\x00\x04MQTT\x05" in connection.recv(65536)

    def close(self) -> None:
        self._listener.close()
        for connection in self._open:
            connection.close()


@pytest.fixture
def fake_server() -> Iterator[Callable[..., FakeServer]]:
    servers: list[FakeServer] = []

    def make(*replies: bytes, then_close: bool = False) -> FakeServer:
        servers.append(FakeServer(*replies, then_close=then_close))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


MakeServer = Callable[..., FakeServer]


@pytest.mark.parametrize(
    ("reply", "line"),
    [
        (b"\xff\x00\xff\x00", "does not speak MQTT v5"),
        (b"\x20\xff\xff\xff\xff\xff", "does not speak MQTT v5"),
        (b"\x20\x02\x00\x01", "does not speak MQTT v5"),
        (b"\x20\x03\x00\x86\x00", "bad user name or password"),
        (b"\x20\x03\x00\x8a\x00", "banned"),
        (
            bytes.fromhex("2005 0000 02 2500"),
            "keeps no retained messages (Retain Available): use one that does",
        ),
        (bytes.fromhex("2005 0000 02 2400"), "offers QoS 0 only (Maximum QoS): use one with QoS 1"),
        (bytes.fromhex("2005 0000 02 2800"), "takes no wildcard subscriptions: use one that does"),
    ],
)
def test_invalid_or_refusing_connack_is_explained_in_one_line(
    fake_server: MakeServer, reply: bytes, line: str
) -> None:
    assert line in refused(fake_server(reply).address)


@pytest.mark.parametrize(
    ("replies", "then_close", "reason"),
    [
        ((), False, "it accepts, but gives no MQTT reply"),
        ((), True, "it closed the connection without an MQTT reply"),
        ((b"\x20\x03\x00\x89\x00",), False, "server busy: the broker takes no"),
        ((b"\x20\x03\x00\x97\x00",), False, "quota exceeded: the broker has as many"),
        ((b"\x20\x03\x00\x9f\x00",), False, "connection rate exceeded: too many"),
    ],
)
def test_temporary_refusal_is_retried_and_explained(
    fake_server: MakeServer,
    replies: tuple[bytes, ...],
    then_close: bool,
    reason: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("splitee.mqtt.link.delays", lambda: repeat(0.1))
    fake = fake_server(*replies, then_close=then_close)
    with caplog.at_level(logging.WARNING), pytest.raises(BrokerUnreachable) as unreachable:
        Link(fake.address, "link").open(0.5)
    assert f" ({reason}" in str(unreachable.value)
    assert fake.connects >= 2
    assert f"not reachable ({reason}" in caplog.text


def test_session_taken_over_is_not_taken_back_at_once(
    fake_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("splitee.mqtt.link.delays", lambda: repeat(0.0))
    monkeypatch.setattr("splitee.mqtt.link.TAKEOVER_PAUSE", 0.5)
    server = fake_server(CONNACK + b"\xe0\x02\x8e\x00")
    link = Link(server.address, "link")
    link.open(DEADLINE)
    assert link.receive(DEADLINE) == Connected(fresh=True)
    assert link.receive(DEADLINE) == Disconnected("session taken over")
    assert link.receive(DEADLINE) == Connected(fresh=True)
    assert server.accepted[1] - server.accepted[0] >= 0.5
    link.close()


def test_denied_subscription_raises_broker_refused(fake_server: MakeServer) -> None:
    link = Link(fake_server(CONNACK, bytes.fromhex("9005000100 0187")).address, "link")
    link.subscribe("ours", "theirs")
    link.open(DEADLINE)
    assert link.receive(DEADLINE) == Connected(fresh=True)
    with pytest.raises(BrokerRefused, match="denies reading theirs: not authorized"):
        link.receive(DEADLINE)
    link.close()


def test_message_that_ends_every_connection_is_dropped(
    fake_server: MakeServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("splitee.mqtt.link.delays", lambda: repeat(0.01))
    link = Link(fake_server(CONNACK, then_close=True).address, "link")
    link.open(DEADLINE)
    assert link.publish("poison", b"x")
    assert link.flush(DEADLINE)
    assert "dropped 1 unacknowledged messages (poison)" in caplog.text
    link.close()


def test_receive_maximum_of_the_broker_blocks_publishers(
    fake_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("splitee.mqtt.link.CONNECT_LIMIT", 0.3)
    link = Link(fake_server(bytes.fromhex("20060000 03210002"), b"").address, "link")
    link.open(DEADLINE)
    link.meter = counted = RecordingMeter()
    third = threading.Thread(target=lambda: [link.publish("t", bytes([number])) for number in range(3)])
    third.start()
    third.join(0.3)
    assert third.is_alive()
    assert len(counted.sent) == 2
    assert not link.flush(0.05)
    link.close()
    third.join(DEADLINE)
    assert not third.is_alive()


def test_keep_alive_of_the_broker_is_obeyed() -> None:
    """A client that kept to its own, 60 seconds here, would be disconnected again and again."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        link = Link(BrokerAddress("127.0.0.1", listener.getsockname()[1]), "link", keepalive=60)
        opener = threading.Thread(target=link.open, args=(DEADLINE,))
        opener.start()
        with listener.accept()[0] as connection:
            connection.settimeout(DEADLINE)
            connection.recv(65536)
            connection.sendall(bytes.fromhex("2006 0000 03 130002"))
            assert connection.recv(65536) == b"\xc0\x00"  # PINGREQ
            connection.sendall(b"\xd0\x00")
            opener.join(DEADLINE)
        link.close()


@pytest.mark.mosquitto
def test_full_broker_is_reported_as_full_and_tried_again_until_there_is_room(
    make_broker: MakeBroker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("splitee.mqtt.link.delays", lambda: repeat(0.05))
    address = make_broker("mosquitto", "max_connections 1\nallow_anonymous true\n").address
    links = [Link(address, f"link-{number}") for number in range(20)]
    opened = []
    with pytest.raises(BrokerUnreachable, match="as a full broker does"):
        for link in links:  # Mosquitto 2.0.11 counts too few once a client hung up without a CONNECT
            link.open(0.2)
            opened.append(link)
    caplog.clear()

    def make_room() -> bool:
        """Called before each try: once one has failed, another link leaves."""
        if "as a full broker does" in caplog.text and opened:
            opened.pop().close()
        return False

    late = []
    while "as a full broker does" not in caplog.text:
        late.append(Link(address, f"late-{len(late)}"))
        late[-1].open(DEADLINE, make_room)
        assert late[-1].connected
    for link in (*opened, *late):
        link.close()


def test_malformed_message_does_not_end_the_link(
    fake_server: MakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    bad_topic = b"\x30\x05\x00\x01\xff\x00x"
    good = b"\x30\x05\x00\x01t\x00x"
    link = Link(fake_server(CONNACK + bad_topic + good).address, "link")
    link.open(DEADLINE)
    assert link.receive(DEADLINE) == Connected(fresh=True)
    assert link.receive(DEADLINE) == Message("t", b"x")
    assert link.connected
    link.close()
