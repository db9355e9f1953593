# SPDX-License-Identifier: Apache-2.0
"""MQTT over websockets: with Mosquitto's own listener, plain and TLS, and what else a peer may send."""

from __future__ import annotations

import base64
import hashlib
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from authority import Authority

from splitee.errors import BrokerRefused, BrokerUnreachable, ConfigError
from splitee.mqtt.address import BrokerAddress, TlsFiles
from splitee.mqtt.events import Connected, Disconnected, Message
from splitee.mqtt.link import Link
from splitee_lab.local.brokers import MOSQUITTO_SETTINGS, RestartableBroker, free_port

DEADLINE = 10.0
PATH = "/mqtt"
MakeBroker = Callable[..., RestartableBroker]
MakeLink = Callable[..., Link]
Messages = Callable[[Link, int], list[Message]]


@pytest.fixture
def websockets(make_broker: MakeBroker) -> tuple[BrokerAddress, BrokerAddress]:
    """One Mosquitto, by TCP and by websockets."""
    port = free_port()
    settings = f"{MOSQUITTO_SETTINGS}listener {port} 127.0.0.1\nprotocol websockets\n"
    tcp = make_broker("mosquitto", settings).address
    return tcp, BrokerAddress(tcp.host, port, path=PATH)


@pytest.mark.mosquitto
def test_messages_of_all_sizes_arrive_whole(
    messages: Messages, websockets: tuple[BrokerAddress, BrokerAddress], make_link: MakeLink
) -> None:
    """Large messages go one way only: Mosquitto 2.0.11 needs 100 ms for each 4 KiB that it delivers."""
    tcp, websocket = websockets
    near = make_link(websocket, "near", "to/near")
    far = make_link(tcp, "far", "to/far")
    up = [
        bytes([number]) * size
        for number, size in enumerate([0, 1, 125, 126, 65_535, 65_536, *[1_000_000] * 12])
    ]
    for payload in up:
        assert near.publish("to/far", payload)
    assert messages(far, len(up)) == [Message("to/far", payload) for payload in up]
    down = [bytes([number]) * size for number, size in enumerate([0, 1, 125, 126, 4_000, 20_000])]
    for payload in down:
        assert far.publish("to/near", payload)
    assert messages(near, len(down)) == [Message("to/near", payload) for payload in down]
    assert near.flush(DEADLINE)


@pytest.mark.mosquitto
def test_farewell_is_the_last_message_of_a_closed_link(
    messages: Messages, websockets: tuple[BrokerAddress, BrokerAddress], make_link: MakeLink
) -> None:
    tcp, websocket = websockets
    watcher = make_link(tcp, "watcher", "state")
    leaving = make_link(websocket, "leaving", will=("state", b"vanished"))
    leaving.close(("state", b"left"))
    assert messages(watcher, 1) == [Message("state", b"left")]
    assert watcher.receive(0.3) is None


@pytest.mark.mosquitto
def test_port_of_the_other_transport_is_reported(
    websockets: tuple[BrokerAddress, BrokerAddress],
) -> None:
    tcp, websocket = websockets
    with pytest.raises(BrokerRefused, match=r"a web server .* takes websockets there has the address ws://"):
        Link(replace(websocket, path=None), "link").open(DEADLINE)
    with pytest.raises(
        BrokerUnreachable, match="in the websocket handshake: is this its port for websockets"
    ):
        Link(replace(tcp, path=PATH), "link").open(0.2)


@pytest.mark.mosquitto
def test_websockets_work_over_tls_with_certificates_on_both_sides(
    public_path: Path, make_broker: MakeBroker, messages: Messages, make_link: MakeLink
) -> None:
    authority = Authority(public_path, "authority")
    files, port = authority.issue("broker"), free_port()
    settings = (
        f"{MOSQUITTO_SETTINGS}listener {port} 127.0.0.1\nprotocol websockets\n"
        f"cafile {files.ca}\ncertfile {files.certificate}\nkeyfile {files.key}\nrequire_certificate true\n"
    )
    tcp = make_broker("mosquitto", settings).address
    address = BrokerAddress(tcp.host, port, tls=True, path=PATH)
    link = make_link(address, "link", "t", tls=authority.issue("device"))
    assert link.publish("t", bytes(10_000))
    assert messages(link, 1) == [Message("t", bytes(10_000))]
    with pytest.raises(BrokerRefused, match="its certificate is not trusted"):
        Link(address, "stranger", tls=Authority(public_path, "foreign").issue("stranger")).open(DEADLINE)
    with pytest.raises(ConfigError, match="use wss://"):
        Link(replace(address, tls=False), "link", tls=TlsFiles(ca=authority.file))


class Peer:
    """The broker's end of one websocket, by hand."""

    def __init__(self, opened: socket.socket) -> None:
        self._opened = opened
        key = re.search(rb"(?i)sec-websocket-key: (\S+)", self.take_until(b"\r\n\r\n"))
        assert key is not None
        digest = hashlib.sha1(key[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()  # noqa: S324
        accept = base64.b64encode(digest).decode()
        opened.sendall(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n".encode()
        )

    def take_until(self, end: bytes) -> bytes:
        taken = b""
        while not taken.endswith(end):
            taken += self.take(1)
        return taken

    def take(self, count: int) -> bytes:
        taken = bytearray()
        while len(taken) < count:
            more = self._opened.recv(count - len(taken))
            assert more, "the client has hung up"
            taken += more
        return bytes(taken)

    def frame(self) -> tuple[int, bytes]:
        """Opcode and payload of the next frame; what a client sends must be masked."""
        opcode, length = self.take(2)
        assert length & 0x80, "a frame without a mask"
        length &= 0x7F
        if length > 125:
            length = int.from_bytes(self.take(2 if length == 126 else 8), "big")
        mask, data = np.frombuffer(self.take(4), np.uint8), np.frombuffer(self.take(length), np.uint8)
        return opcode & 0xF, (data ^ np.resize(mask, length)).tobytes()

    def send(self, opcode: int, payload: bytes, length: int | None = None, final: bool = True) -> None:
        size = len(payload) if length is None else length
        head = struct.pack("!BBQ", opcode | 0x80 * final, 127, size)
        self.send_raw(head + payload)

    def send_raw(self, data: bytes) -> None:
        self._opened.sendall(data)

    def accept(self) -> None:
        """Lets the client in, as MQTT does."""
        assert self.frame()[1][0] == 0x10
        self.send(2, bytes.fromhex("2003000000"))


@contextmanager
def peer_of() -> Iterator[tuple[Link, Peer]]:
    """A link, connected to a peer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 15)  # the system holds little
        address = BrokerAddress("127.0.0.1", listener.getsockname()[1], path="/x?key=1")
        link = Link(address, "link")
        opener = threading.Thread(target=link.open, args=(DEADLINE,))
        opener.start()
        with listener.accept()[0] as opened:
            opened.settimeout(DEADLINE)
            peer = Peer(opened)
            peer.accept()
            opener.join(DEADLINE)
            assert link.receive(DEADLINE) == Connected(fresh=True)
            yield link, peer
        link.close()


def test_message_sent_in_partial_writes_arrives_whole() -> None:
    with peer_of() as (link, peer):
        for number in (1, 2):
            payload = bytes([number]) * 1_000_000
            assert link.publish("t", payload)  # the peer has read nothing yet
            opcode, packet = peer.frame()
            assert (opcode, packet[0] & 0xF0) == (2, 0x30)
            assert packet.endswith(payload)
            peer.send(2, bytes((0x40, 2, 0, number)))
            assert link.flush(DEADLINE)


def test_reply_to_a_ping_is_a_masked_pong() -> None:
    with peer_of() as (_, peer):
        peer.send(9, b"are you there")
        assert peer.frame() == (10, b"are you there")


def test_mqtt_packets_may_begin_and_end_within_websocket_frames() -> None:
    with peer_of() as (link, peer):
        publish = b"\x30\x05\x00\x01t\x00x"
        peer.send(2, publish * 2 + publish[:3])
        peer.send(0, publish[3:4], final=False)
        peer.send(9, b"")
        peer.send(0, publish[4:])
        assert [link.receive(DEADLINE) for _ in range(3)] == [Message("t", b"x")] * 3


def test_oversize_websocket_frame_ends_the_connection() -> None:
    with peer_of() as (link, peer):
        publish = b"\x30" + bytes.fromhex("ffffff07") + b"\x00\x01t\x00"  # 16 MiB of payload, again and again
        packet = publish + bytes((16 << 20) - 1 - 4)

        def flood() -> None:
            with suppress(OSError):
                peer.send(2, b"", length=1 << 62)
                for _ in range(20):
                    peer.send_raw(packet)

        threading.Thread(target=flood, daemon=True).start()
        whole = 0
        while isinstance(event := link.receive(DEADLINE), Message):
            whole += 1
        assert isinstance(event, Disconnected)
        assert whole < 3
