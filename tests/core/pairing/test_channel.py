# SPDX-License-Identifier: Apache-2.0
"""Messages over the connection of a pairing: bounded in size and in time."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitee.errors import MalformedMessage
from splitee.pairing.channel import LARGEST, Channel
from splitee.pairing.messages import Granted, Greeting, Proof, Refused, Stored
from splitee_broker.pairing.hub_certificate import hub_context


@contextmanager
def pair(limit: float = 10.0) -> Iterator[tuple[ssl.SSLSocket, Channel]]:
    """Both ends of a TLS connection: one that sends any bytes, and a channel."""
    near, far = socket.socketpair()
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    found: list[ssl.SSLSocket] = []
    server, _ = hub_context()
    thread = threading.Thread(target=lambda: found.append(server.wrap_socket(far, server_side=True)))
    thread.start()
    hostile = client.wrap_socket(near)
    thread.join()
    with hostile, found[0]:
        yield hostile, Channel(found[0], limit)


def framed(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def test_message_is_received_as_it_was_sent() -> None:
    message = Granted(b"c" * 8192, b"a" * 8192, "mqtts://" + "h" * 500, b"r" * 8192, b"s" * 8192)
    with pair() as (client, server), pair() as (other, channel):
        server.send(message)
        size = int.from_bytes(client.recv(4), "big")
        data = b""
        while len(data) < size:
            data += client.recv(size)
        other.sendall(framed(data))
        assert channel.receive(Granted) == message


@pytest.mark.parametrize("size", [LARGEST + 1, 2**32 - 1])
def test_message_length_over_the_limit_is_refused(size: int) -> None:
    with pair() as (hostile, channel):
        hostile.sendall(size.to_bytes(4, "big"))
        with pytest.raises(MalformedMessage, match=f"expected at most {LARGEST}"):
            channel.receive(Stored)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x91" * LARGEST,
        msgspec.msgpack.encode({"type": "Stored", "more": 1}),
        msgspec.msgpack.encode({"type": "Else"}),
        msgspec.msgpack.encode({"type": "Proof", "nonce": b"short", "proof": bytes(32)}),
        msgspec.msgpack.encode({"type": "Granted", "certificate": bytes(8193), "authority": b""}),
        msgspec.msgpack.encode({"type": "Refused", "reason": "no such reason"}),
        msgspec.msgpack.encode(Stored()) + b"\0",
    ],
)
def test_data_that_is_not_a_message_is_refused(data: bytes) -> None:
    with pair() as (hostile, channel):
        hostile.sendall(framed(data))
        with pytest.raises(MalformedMessage, match="no message of the pairing"):
            channel.receive(Stored)


def test_random_bytes_are_refused_and_the_next_message_is_read() -> None:
    with pair(limit=600.0) as (hostile, channel):

        @settings(max_examples=200, deadline=None)
        @given(st.binary(max_size=200))
        def refused(data: bytes) -> None:
            hostile.sendall(framed(data) + framed(msgspec.msgpack.encode(Stored())))
            with pytest.raises(MalformedMessage):
                channel.receive(Stored)
            assert channel.receive(Stored) == Stored()

        refused()


def test_message_out_of_turn_is_refused() -> None:
    with pair() as (hostile, channel):
        hostile.sendall(framed(msgspec.msgpack.encode(Greeting(1, bytes(32)))))
        with pytest.raises(MalformedMessage, match="expected Proof, got Greeting"):
            channel.receive(Proof)
        hostile.sendall(framed(msgspec.msgpack.encode(Refused("code"))) * 2)
        assert channel.receive_or_refusal(Proof) == Refused("code")
        with pytest.raises(MalformedMessage, match="expected Proof, got Refused"):
            channel.receive(Proof)


def test_slow_sender_does_not_extend_the_deadline() -> None:
    """The deadline is for the whole message, and for the whole conversation until it is extended."""
    with pair(limit=0.5) as (hostile, channel):
        ended = threading.Event()

        def drip() -> None:
            for byte in framed(bytes(10_000)):
                hostile.sendall(bytes([byte]))
                if ended.wait(0.05):
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            channel.receive(Stored)
        assert time.monotonic() - began < 60, "all of it would take eight minutes"
        ended.set()
        thread.join()
        with pytest.raises(TimeoutError):
            channel.receive(Stored)
