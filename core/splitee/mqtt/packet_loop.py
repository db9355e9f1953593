# SPDX-License-Identifier: Apache-2.0
"""The loop that processes a paho client's packets: first all that have arrived, then those to be sent."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from typing import Any

from paho.mqtt.client import Client
from paho.mqtt.enums import MQTTErrorCode

BATCH = 64  # packets read before those that wait to be written are written

Selector: type[selectors.BaseSelector] = getattr(selectors, "PollSelector", selectors.SelectSelector)


class PacketLoop:
    """Runs a client on one thread at a time; a packet that another thread has queued wakes it.

    Paho's own loop queries the system before each packet whether there is one, wakes itself for each
    acknowledgement, and takes no more than 1,024 files.
    """

    def __init__(self, client: Client, read_delay: float = 0.0) -> None:
        """`read_delay`: seconds for which incoming data may wait; one call then reads it all."""
        self._client = client
        self._read_delay = read_delay
        self._socket: Any = None
        self._selector = Selector()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._owner = 0  # the thread that runs it
        client.on_socket_register_write = self._wake

    def __del__(self) -> None:
        self._wake_reader.close()
        self._wake_writer.close()

    def run_once(self, timeout: float) -> MQTTErrorCode:
        """Wait at most `timeout` seconds for packets, and process them.

        Returns the client's error code: MQTT_ERR_SUCCESS while the connection lasts.
        """
        self._owner = threading.get_ident()
        opened = self._client.socket()
        if opened is None:
            return MQTTErrorCode.MQTT_ERR_NO_CONN
        if self._is_readable(opened, timeout):
            code = self._read(opened)
            if code or self._client.socket() is None:
                return code
        if self._client.want_write():
            code = self._client.loop_write()
            if code or self._client.socket() is None:
                return code
        return self._client.loop_misc()

    def _is_readable(self, opened: Any, timeout: float) -> bool:
        """Waits for bytes, for room for what could not be written, or for another thread's packet."""
        if opened is not self._socket:
            self._selector = Selector()
            self._selector.register(self._wake_reader, selectors.EVENT_READ)
            self._selector.register(opened, selectors.EVENT_READ)
            self._socket = opened
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._client.want_write() else 0)
        if self._selector.get_key(opened).events != wanted:
            self._selector.modify(opened, wanted)
        is_readable = _pending(opened) > 0
        if self._read_delay and not is_readable:
            time.sleep(self._read_delay)
        for key, events in self._selector.select(0 if is_readable else timeout):
            if key.fileobj is self._wake_reader:
                with contextlib.suppress(BlockingIOError):
                    self._wake_reader.recv(1 << 10)
            elif events & selectors.EVENT_READ:
                is_readable = True
        return is_readable

    def _read(self, opened: Any) -> MQTTErrorCode:
        for _ in range(BATCH):
            code = self._client.loop_read()
            if code or self._client.socket() is None or _pending(opened) == 0:
                return code
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _wake(self, *_: Any) -> None:
        """Wake the loop; paho calls this on the thread that queues a packet.

        Only the loop's thread writes to the socket, because two writers would interleave their packets.
        """
        if threading.get_ident() != self._owner:
            with contextlib.suppress(OSError):  # a full pipe wakes it as well
                self._wake_writer.send(b"\0")


def _pending(opened: Any) -> int:
    """Bytes that the client's socket has buffered; the system does not report them as readable."""
    return int(opened.pending()) if hasattr(opened, "pending") else 0
