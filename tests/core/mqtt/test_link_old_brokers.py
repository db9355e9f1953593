# SPDX-License-Identifier: Apache-2.0
"""Brokers of MQTT 3.1.1 only, in each way of refusing a client of v5, and brokers that just hang up."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import repeat

import pytest

from splitee.errors import BrokerRefused, BrokerUnreachable, ExitCode
from splitee.mqtt.address import BrokerAddress
from splitee.mqtt.link import Link

DEADLINE = 10.0
LEVEL = 8  # a CONNECT's byte that holds the protocol's version, behind a remaining length of one byte
REFUSED_311 = bytes.fromhex("20020001")
ACCEPTED_311 = bytes.fromhex("20020000")
Reply = Callable[[int], bytes]


class OldBroker:
    """Replies to a CONNECT by its protocol level (4: MQTT 3.1.1; 5: v5); hangs up if the reply is empty."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = BrokerAddress("127.0.0.1", self._listener.getsockname()[1])
        self.levels: list[int] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(DEADLINE)
                packet = connection.recv(65536)
                if packet[4:8] != b"MQTT":
                    continue
                self.levels.append(packet[LEVEL])
                if reply := self._reply(packet[LEVEL]):
                    connection.sendall(reply)
                    with suppress(ConnectionResetError):
                        connection.recv(65536)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def old_broker() -> Iterator[Callable[[Reply], OldBroker]]:
    brokers: list[OldBroker] = []

    def make(reply: Reply) -> OldBroker:
        brokers.append(OldBroker(reply))
        return brokers[-1]

    yield make
    for broker in brokers:
        broker.close()


MakeBroker = Callable[[Reply], OldBroker]


@pytest.mark.parametrize(
    "reply_to_v5",
    [REFUSED_311, bytes.fromhex("2003008400"), bytes.fromhex("20020084"), b"", b"\xff" * 8, ACCEPTED_311],
    ids=["return code 1", "0x84", "0x84 in the form of 3.1.1", "hangs up", "garbage", "lets v5 in as 3.1.1"],
)
@pytest.mark.parametrize("reply_to_311", [ACCEPTED_311, bytes.fromhex("20020005")], ids=["open", "guarded"])
def test_broker_of_mqtt_311_only_is_refused_at_once(
    old_broker: MakeBroker, reply_to_v5: bytes, reply_to_311: bytes
) -> None:
    broker = old_broker(lambda level: reply_to_v5 if level == 5 else reply_to_311)
    with pytest.raises(BrokerRefused, match="does not speak MQTT v5") as error:
        Link(broker.address, "link").open(DEADLINE)
    assert error.value.exit_code == ExitCode.REFUSED
    assert "\n" not in str(error.value)
    assert broker.levels.count(5) <= 3


def test_broker_that_hangs_up_on_each_client_is_reported_as_maybe_full(
    old_broker: MakeBroker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("splitee.mqtt.link.delays", lambda: repeat(0.05))
    broker = old_broker(lambda _level: b"")
    with caplog.at_level(logging.WARNING), pytest.raises(BrokerUnreachable, match="as a full broker does"):
        Link(broker.address, "link").open(0.3)
    assert broker.levels[:2] == [5, 4]


def test_broker_that_hangs_up_once_is_not_taken_for_an_old_one(old_broker: MakeBroker) -> None:
    """A full broker may have room again a moment later."""
    replies = iter([b""])
    broker = old_broker(lambda level: ACCEPTED_311 if level == 4 else next(replies, b"\x20\x03\x00\x00\x00"))
    link = Link(broker.address, "link")
    link.open(DEADLINE)
    assert broker.levels == [5, 4, 5]
    link.close()
