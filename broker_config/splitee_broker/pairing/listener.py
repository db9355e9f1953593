# SPDX-License-Identifier: Apache-2.0
"""The port on which a hub waits for devices: few connections at once, and a deadline for each."""

from __future__ import annotations

import ipaddress
import logging
import socket
import ssl
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress

from splitee.errors import ConfigError, MalformedMessage
from splitee.log_limits import FirstFew
from splitee.pairing.channel import Channel

MOST_CONNECTIONS = 32  # connections
MOST_FROM_ONE_ADDRESS = 8  # connections from one address, behind which there may be several devices
PROVING = 10.0  # seconds for a connection to show that it knows the code
POLL = 0.2  # seconds
CLOSE_TIMEOUT = 1.0  # seconds to finish open connections when it is closed

log = logging.getLogger(__name__)


class PairingListener:
    """Listens while it is open; each connection has its own thread."""

    def __init__(self, port: int, context: ssl.SSLContext, report: Callable[[str], None]) -> None:
        """Raises ConfigError: the port is not available."""
        self._context = context
        self._report = report
        self._lines: defaultdict[str, FirstFew] = defaultdict(FirstFew)
        self._connections: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        try:
            self._listener = _listen(port)
        except OSError as error:
            raise ConfigError(f"--port {port}: {error.strerror}; take another, or end what uses it") from None
        self.port = self._listener.getsockname()[1]

    def serve(self, receive: Callable[[Channel, str], None], is_open: Callable[[], bool]) -> None:
        """Passes each connection to `receive`, on its own thread, while `is_open`."""
        self._listener.settimeout(POLL)
        with self._listener:
            while is_open():
                try:
                    connection, peer = self._listener.accept()
                except TimeoutError:
                    continue
                except OSError as error:  # no descriptors, or the client is gone already
                    log.debug("accept: %s", error)
                    time.sleep(POLL)
                    continue
                self._accept(connection, _address(peer[0]), receive)
        until = time.monotonic() + CLOSE_TIMEOUT
        with self._lock:
            there = list(self._threads)
        for thread in there:
            thread.join(max(0.0, until - time.monotonic()))

    def _accept(
        self, connection: socket.socket, address: str, receive: Callable[[Channel, str], None]
    ) -> None:
        group = _group(address)
        with self._lock:
            full = (
                self._connections[group] >= MOST_FROM_ONE_ADDRESS
                or self._connections.total() >= MOST_CONNECTIONS
            )
            if not full:
                self._connections[group] += 1
        if full:
            connection.close()
            self._report_seldom("full", f"{address}: sent away, too many connections at once")
            return
        thread = threading.Thread(target=self._handle, args=(connection, address, receive), daemon=True)
        with self._lock:
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:  # no more threads are available
            connection.close()
            self._forget(thread, address)

    def _handle(
        self, connection: socket.socket, address: str, receive: Callable[[Channel, str], None]
    ) -> None:
        try:
            connection.settimeout(PROVING)
            with connection, self._context.wrap_socket(connection, server_side=True) as secured:
                receive(Channel(secured, PROVING), address)
        except (OSError, ValueError, MalformedMessage) as error:
            self._report_seldom(
                "left", f"{address}: left, or speaks something else ({_describe_error(error)})"
            )
        except Exception:
            log.exception("%s: a defect in splitee; the invitation stays", address)
        finally:
            self._forget(threading.current_thread(), address)

    def _forget(self, thread: threading.Thread, address: str) -> None:
        with self._lock:
            self._connections[_group(address)] -= 1
            self._threads.discard(thread)

    def _report_seldom(self, kind: str, line: str) -> None:
        with self._lock:
            due = self._lines[kind].due()
        if due:
            self._report(line)


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        with suppress(OSError):
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _address(text: str) -> str:
    """The usual form of an address: an IPv4 address that came through an IPv6 socket, as IPv4."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(address)


def _group(address: str) -> str:
    """The address by which connections are counted: an IPv6 host has a whole /64 of addresses."""
    if ":" not in address:
        return address
    return str(ipaddress.ip_network(f"{address}/64", strict=False))


def _describe_error(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it took too long"
    if isinstance(error, ssl.SSLError):
        return (error.reason or "TLS").lower().replace("_", " ")
    return getattr(error, "strerror", None) or str(error)
