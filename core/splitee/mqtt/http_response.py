# SPDX-License-Identifier: Apache-2.0
"""Recognises a web server at the address of a broker, and describes its response."""

from __future__ import annotations

import re
import socket
import ssl
import time

from splitee.errors import BrokerRefused
from splitee.mqtt.address import BrokerAddress

LARGEST_LINE = 1024  # bytes of a status line
TEMPORARY = {408, 425, 429, 500, 502, 503, 504}  # what a proxy says while the broker behind it is away
NO_METHOD = (
    b"\x10\x00\r\n\r\n"  # libwebsockets replies to this, and closes the connection at a request for a page
)
REDIRECTS = {301, 302, 303, 307, 308}
_STATUS = re.compile(rb"HTTP/\d(?:\.\d)? (\d{3})(?: ([^\r\n]{0,100}))?")
_LOCATION = re.compile(rb"\r?\nlocation:[ \t]*([!-~]{1,300})", re.IGNORECASE)


class HttpResponse(ConnectionError):
    """A web server's response: status, reason, and the target of a redirect."""

    def __init__(self, status: int, reason: str, location: str | None = None) -> None:
        super().__init__(f"HTTP {status} {reason}".rstrip())
        self.status = status
        self.location = location

    @classmethod
    def read(cls, head: bytes) -> HttpResponse | None:
        """Parse a response that begins with `head`; None: it is not HTTP."""
        status = _STATUS.match(head)
        if status is None:
            return None
        location = _LOCATION.search(head)
        return cls(
            int(status[1]),
            (status[2] or b"").decode("ascii", "replace").strip(),
            None if location is None else location[1].decode("ascii"),
        )

    @property
    def is_temporary(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in TEMPORARY

    def refusal(self, address: BrokerAddress) -> BrokerRefused:
        """The message for the user about a permanent refusal."""
        what = f"the server at {address} is a web server ({self})"
        if address.path is None:
            return BrokerRefused(
                f"{what}, no MQTT broker: check host and port; a broker that takes websockets there has the "
                "address ws://HOST:PORT/PATH, or wss:// for TLS"
            )
        if self.status in REDIRECTS:
            return BrokerRefused(
                f"{what} that redirects to {self.location or 'nowhere'}: give that broker's address"
            )
        if self.status in (401, 403, 407):
            return BrokerRefused(
                f"{what} that lets nobody in there: check path, certificate and its access rules"
            )
        return BrokerRefused(
            f"{what} that opens no websocket there: check host, port and path (/mqtt at most brokers)"
        )


def request_http(address: BrokerAddress, tls: ssl.SSLContext | None, limit: float) -> HttpResponse | None:
    """Request a page from an address; None without an HTTP response within `limit` seconds."""
    deadline = time.monotonic() + limit
    page = f"GET / HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n\r\n".encode()
    for request in (page, NO_METHOD):
        response = HttpResponse.read(_first_line(address, tls, request, deadline))
        if response is not None:
            return response
    return None


def _first_line(address: BrokerAddress, tls: ssl.SSLContext | None, request: bytes, deadline: float) -> bytes:
    """The start of the response to a request, read as long as it can be an HTTP status line."""
    head = b""
    left = deadline - time.monotonic()
    try:
        with socket.create_connection((address.host, address.port), left) as plain:
            opened = plain if tls is None else tls.wrap_socket(plain, server_hostname=address.host)
            with opened:
                opened.sendall(request)
                while _begins_as_http(head) and (left := deadline - time.monotonic()) > 0:
                    opened.settimeout(left)
                    received = opened.recv(LARGEST_LINE)
                    if not received:
                        break
                    head += received
    except (OSError, ValueError):
        pass
    return head


def _begins_as_http(head: bytes) -> bool:
    """Whether this may be the beginning of an incomplete status line."""
    return head[:5] == b"HTTP/"[: len(head)] and b"\n" not in head and len(head) < LARGEST_LINE
