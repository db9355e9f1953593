# SPDX-License-Identifier: Apache-2.0
"""What a link says when it is not let in: accounts, denied topics, and servers that are no broker."""

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
from fakes import Counted

from splitee.errors import BrokerRefused, BrokerUnreachable
from splitee.mqtt.address import BrokerAddress
from splitee.mqtt.events import Connected, Disconnected, Message
from splitee.mqtt.link import Link
from splitee_lab.local.brokers import MOSQUITTO_SETTINGS, OwnBroker

DEADLINE = 10.0
MakeBroker = Callable[..., OwnBroker]
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
def test_accounts(guarded: BrokerAddress) -> None:
    for username, password in ((None, None), ("pi", "wrong"), ("eve", "secret")):
        line = refused(BrokerAddress(guarded.host, guarded.port, False, username, password))
        assert "refused 'link': not authorized; check user, password, certificate and id" in line
        assert "secret" not in line


@pytest.mark.mosquitto
def test_a_topic_that_is_not_ours_is_counted_and_named(
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
    """Answers each packet of a connection with the next of the given bytes; keeps when each one came."""

    def __init__(self, *answers: bytes, then_close: bool = False) -> None:
        self._answers = answers
        self._then_close = then_close
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = BrokerAddress("127.0.0.1", self._listener.getsockname()[1])
        self.accepted: list[float] = []
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
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        try:
            for answer in self._answers:
                connection.recv(65536)
                connection.sendall(answer)
            if self._then_close:
                connection.recv(65536)
                connection.close()
        except OSError:
            pass

    def close(self) -> None:
        self._listener.close()
        for connection in self._open:
            connection.close()


@pytest.fixture
def fake_server() -> Iterator[Callable[..., FakeServer]]:
    servers: list[FakeServer] = []

    def make(*answers: bytes, then_close: bool = False) -> FakeServer:
        servers.append(FakeServer(*answers, then_close=then_close))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


MakeServer = Callable[..., FakeServer]


@pytest.mark.parametrize(
    ("answer", "line"),
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
def test_refusals_that_no_real_broker_here_gives(fake_server: MakeServer, answer: bytes, line: str) -> None:
    assert line in refused(fake_server(answer).address)


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        ({"answers": (), "then_close": False}, "gives no MQTT answer"),
        ({"answers": (), "then_close": True}, "closed the connection without an MQTT answer"),
        ({"answers": (b"\x20\x03\x00\x89\x00",), "then_close": False}, "server busy: the broker takes no"),
        (
            {"answers": (b"\x20\x03\x00\x97\x00",), "then_close": False},
            "quota exceeded: the broker has as many",
        ),
        ({"answers": (b"\x20\x03\x00\x9f\x00",), "then_close": False}, "connection rate exceeded: too many"),
    ],
)
def test_what_may_pass_is_tried_again(
    fake_server: MakeServer,
    server: dict[str, object],
    reason: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("splitee.mqtt.link.delays", lambda: repeat(0.1))
    answers = server["answers"]
    assert isinstance(answers, tuple)
    fake = fake_server(*answers, then_close=server["then_close"])
    with caplog.at_level(logging.WARNING), pytest.raises(BrokerUnreachable, match=reason):
        Link(fake.address, "link").open(0.5)
    assert len(fake.accepted) >= 2
    assert (
        f"not reachable ({reason}" in caplog.text
        or f"not reachable (it {reason}" in caplog.text
        or ("gives no MQTT answer" in caplog.text)
    )


def test_a_session_taken_over_is_not_taken_back_at_once(
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


def test_a_denied_subscription_is_raised(fake_server: MakeServer) -> None:
    link = Link(fake_server(CONNACK, bytes.fromhex("9005000100 0187")).address, "link")
    link.subscribe("ours", "theirs")
    link.open(DEADLINE)
    assert link.receive(DEADLINE) == Connected(fresh=True)
    with pytest.raises(BrokerRefused, match="denies reading theirs: not authorized"):
        link.receive(DEADLINE)
    link.close()


def test_a_message_that_ends_every_connection_is_given_up(
    fake_server: MakeServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("splitee.mqtt.link.delays", lambda: repeat(0.01))
    link = Link(fake_server(CONNACK, then_close=True).address, "link")
    link.open(DEADLINE)
    assert link.publish("poison", b"x")
    assert link.flush(DEADLINE)
    assert "dropped 1 unacknowledged messages (poison)" in caplog.text
    link.close()


def test_the_receive_maximum_of_the_broker_holds_publishers_back(
    fake_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("splitee.mqtt.link.CONNECT_LIMIT", 0.3)
    link = Link(fake_server(bytes.fromhex("20060000 03210002"), b"").address, "link")
    link.open(DEADLINE)
    link.meter = counted = Counted()
    third = threading.Thread(target=lambda: [link.publish("t", bytes([number])) for number in range(3)])
    third.start()
    third.join(0.3)
    assert third.is_alive()
    assert len(counted.sent) == 2
    assert not link.flush(0.05)
    link.close()
    third.join(DEADLINE)
    assert not third.is_alive()


def test_the_keep_alive_of_the_broker_is_obeyed() -> None:
    """Who kept to its own, 60 seconds here, would be hung up on again and again."""
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
def test_a_full_broker_is_told_as_that_and_asked_again(
    make_broker: MakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("splitee.mqtt.link.delays", lambda: repeat(0.05))
    address = make_broker("mosquitto", "max_connections 1\nallow_anonymous true\n").address
    links = [Link(address, f"link-{number}") for number in range(20)]
    opened = []
    with pytest.raises(BrokerUnreachable, match="as a full broker does"):
        for link in links:  # Mosquitto 2.0.11 counts too few once somebody hung up without a CONNECT
            link.open(0.2)
            opened.append(link)
    opened.pop().close()
    late = Link(address, "late")
    late.open(DEADLINE)
    for link in (*opened, late):
        link.close()


def test_a_malformed_message_does_not_end_the_link(
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
