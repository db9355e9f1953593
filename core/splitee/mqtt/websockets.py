# SPDX-License-Identifier: Apache-2.0
"""MQTT over websockets: paho's transport, with bounds, error reasons and complete writes added."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from typing import Any

from paho.mqtt.client import WebsocketConnectionError, _WebsocketWrapper

from splitee.mqtt.http_response import HttpResponse
from splitee.mqtt.patient_client import PatientClient
from splitee.mqtt.read_ahead import ReadAhead

LARGEST_HEAD = 16 << 10  # bytes of the response to the handshake
LARGEST_FRAME = 32 << 20  # bytes; a frame may hold several packets, and paho keeps it whole


class WebsocketClient(PatientClient):
    """A paho client whose websocket handshake ends in `connect_timeout` seconds, whatever comes."""

    def _create_socket(self) -> _Websocket:
        opened = self._create_socket_connection()
        try:
            if self._ssl:
                opened = self._ssl_wrap_socket(opened)
            return _Websocket(
                socket=_Handshake(opened, self.connect_timeout),
                host=self._host,
                port=self._port,
                is_ssl=self._ssl,
                path=self._websocket_path,
                extra_headers=self._websocket_extra_headers,
            )
        except BaseException:
            opened.close()
            raise


def raw_socket(opened: Any) -> socket.socket:
    """The system's socket below what a client calls its socket."""
    if isinstance(opened, ReadAhead):
        return opened.socket
    return opened._socket if isinstance(opened, _Websocket) else opened


class _Handshake:
    """The socket during the handshake: bounds the response, which paho does not, and keeps it."""

    def __init__(self, opened: socket.socket, limit: float) -> None:
        self.socket = opened
        self.head = bytearray()
        self._deadline = time.monotonic() + limit

    def send(self, data: bytes) -> int:
        self.socket.sendall(data)
        return len(data)

    def recv(self, size: int) -> bytes:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("no end of the response to the websocket handshake")
        if len(self.head) >= LARGEST_HEAD:
            raise ConnectionError("an endless response to the websocket handshake")
        self.socket.settimeout(left)
        data = self.socket.recv(size)
        self.head += data
        return data

    def failure(self) -> OSError:
        """Why the handshake failed, from the response; paho may stop before it has read the cause."""
        with contextlib.suppress(OSError):
            while b"\r\n\r\n" not in self.head and self.recv(1024):
                pass
        if not self.head:
            return ConnectionError(
                "it closed the connection in the websocket handshake: is this its port for websockets?"
            )
        return HttpResponse.read(bytes(self.head)) or ConnectionError(
            "the response to the websocket handshake is not HTTP"
        )


class _Websocket(_WebsocketWrapper):
    def __init__(self, socket: _Handshake, **options: Any) -> None:
        try:
            super().__init__(socket=socket, **options)  # type: ignore[arg-type]
        except (WebsocketConnectionError, ValueError, IndexError):
            raise socket.failure() from None
        self._socket = socket.socket

    def send(self, data: bytes | bytearray) -> int:
        """Send; BlockingIOError if nothing fits, because paho takes 0 for the end of a packet."""
        sent = super().send(data)
        if sent == 0:
            raise BlockingIOError
        return sent

    def _create_frame(self, opcode: int, data: bytearray, do_masking: int = 1) -> bytearray:
        """A frame, masked (RFC 6455, 5.1) even if paho requests none; in one operation, not bytewise."""
        head = bytearray([0x80 | opcode])
        if len(data) < 126:
            head.append(0x80 | len(data))
        elif len(data) < 1 << 16:
            head += struct.pack("!BH", 0x80 | 126, len(data))
        else:
            head += struct.pack("!BQ", 0x80 | 127, len(data))
        mask = os.urandom(4)
        key = (mask * (len(data) // 4 + 1))[: len(data)]
        masked = int.from_bytes(data, "little") ^ int.from_bytes(key, "little")
        return head + mask + masked.to_bytes(len(data), "little")

    def _buffered_read(self, length: int) -> bytearray:
        if length > LARGEST_FRAME:
            raise ConnectionAbortedError("websocket frame too large")
        return super()._buffered_read(length)
