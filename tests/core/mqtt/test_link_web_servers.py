# SPDX-License-Identifier: Apache-2.0
"""A web server or a proxy where a broker was expected: one line, the right exit code, in bounded time."""

from __future__ import annotations

import itertools
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import repeat

import pytest

from splitee.errors import BrokerRefused, BrokerUnreachable, ExitCode
from splitee.mqtt.address import BrokerAddress
from splitee.mqtt.link import Link

DEADLINE = 10.0
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"


class WebServer:
    """Sends the same bytes on every connection, after the first bytes received, and hangs up."""

    def __init__(self, reply: Iterable[bytes]) -> None:
        self._reply = reply
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = BrokerAddress("127.0.0.1", self._listener.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                connection.recv(65536)
                for part in self._reply:
                    connection.sendall(part)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def web_server() -> Iterator[Callable[[Iterable[bytes]], WebServer]]:
    servers: list[WebServer] = []

    def make(reply: Iterable[bytes]) -> WebServer:
        servers.append(WebServer(reply))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


MakeServer = Callable[[Iterable[bytes]], WebServer]


def http_reply(status: str, *headers: str) -> list[bytes]:
    return ["\r\n".join([f"HTTP/1.1 {status}", *headers, "Content-Length: 5", "", "page\n"]).encode()]


@pytest.mark.parametrize("path", [None, "/mqtt"], ids=["mqtt", "ws"])
@pytest.mark.parametrize("status", ["200 OK", "400 Bad Request", "403 Forbidden", "404 Not Found", "426"])
def test_web_server_is_refused_at_once(web_server: MakeServer, path: str | None, status: str) -> None:
    address = replace(web_server(http_reply(status, "Connection: close")).address, path=path)
    started = time.monotonic()
    with pytest.raises(BrokerRefused) as error:
        Link(address, "link").open(DEADLINE)
    assert time.monotonic() - started < DEADLINE / 2
    assert error.value.exit_code == ExitCode.REFUSED
    line = str(error.value)
    assert line.startswith(f"the server at {address} is a web server (HTTP {status})")
    assert ("no MQTT broker" in line) == (path is None)
    assert "\n" not in line


def test_refusal_of_a_redirect_names_its_target(web_server: MakeServer) -> None:
    moved = http_reply("301 Moved Permanently", "Connection: close", "Location: https://hub.example/mqtt")
    address = replace(web_server(moved).address, path="/mqtt")
    with pytest.raises(
        BrokerRefused, match=r"redirects to https://hub\.example/mqtt: give that broker's address"
    ):
        Link(address, "link").open(DEADLINE)


@pytest.mark.parametrize("path", [None, "/mqtt"], ids=["mqtt", "ws"])
def test_proxy_without_its_broker_is_tried_again(
    web_server: MakeServer,
    path: str | None,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("splitee.mqtt.link.delays", lambda: repeat(0.1))
    address = replace(web_server(http_reply("502 Bad Gateway")).address, path=path)
    with caplog.at_level(logging.WARNING), pytest.raises(BrokerUnreachable):
        Link(address, "link").open(0.5)
    assert "not reachable (a web server or proxy replies: HTTP 502 Bad Gateway); next try in" in caplog.text


def slowly(part: bytes) -> Iterator[bytes]:
    for _ in range(200):
        time.sleep(0.05)
        yield part


@pytest.mark.parametrize("path", [None, "/mqtt"], ids=["mqtt", "ws"])
@pytest.mark.parametrize(
    "endless",
    [
        lambda: itertools.repeat(bytes(65536)),
        lambda: itertools.repeat(b"HTTP/1.1 101 " + b"x" * 65536),
        lambda: itertools.chain([SWITCHED], itertools.repeat(b"X-More: headers\r\n" * 999)),
        lambda: slowly(b"H"),
        lambda: itertools.chain([SWITCHED], slowly(b"x")),
    ],
    ids=["zeros", "status", "headers", "trickle", "trickling header"],
)
def test_endless_response_is_given_up_in_bounded_time(
    web_server: MakeServer,
    path: str | None,
    endless: Callable[[], Iterable[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("splitee.mqtt.connection.CONNECT_LIMIT", 1.0)
    monkeypatch.setattr("splitee.mqtt.link.CONNECT_LIMIT", 1.0)

    class Endless:
        def __iter__(self) -> Iterator[bytes]:
            return iter(endless())

    address = replace(web_server(Endless()).address, path=path)
    started = time.monotonic()
    with pytest.raises((BrokerUnreachable, BrokerRefused)) as error:
        Link(address, "link").open(0.5)
    assert time.monotonic() - started < DEADLINE
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 101 \r\nConnection: Upgrade\r\nSec-WebSocket-Accept:\xff\r\n\r\n",
        b"HTTP/1.1 101 \r\nConnection: Upgrade\r\nSec-WebSocket-Accept\r\n\r\n",
        b"HTTP/1.1 101 \r\nConnection: Upgrade\r\nSec-WebSocket-Accept: wrong\r\n\r\n",
        b"HTTP/9 999 \xff\xfe\x1b[2J\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"",
    ],
)
def test_invalid_websocket_handshake_is_reported_in_one_line(web_server: MakeServer, head: bytes) -> None:
    address = replace(web_server([head]).address, path="/mqtt")
    with pytest.raises((BrokerUnreachable, BrokerRefused)) as error:
        Link(address, "link").open(0.3)
    assert "websocket" in str(error.value)
    assert "\n" not in str(error.value)
