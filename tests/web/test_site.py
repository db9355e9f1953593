# SPDX-License-Identifier: Apache-2.0
"""A site over real sockets: its access, its headers, and the end of its streams."""

from __future__ import annotations

import json
import socket
import threading
import urllib.request
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from aiohttp import web
from sites import served

from splitee.errors import ConfigError
from splitee_web.event_streams import MOST_BROWSERS, MOST_QUEUED, MOST_QUEUED_BYTES
from splitee_web.listening import ListenOptions, listening
from splitee_web.site import STREAMS, make_app, serve

TOKEN = "0123456789abcdef-token"  # noqa: S105 -- made up
HERE = ListenOptions("127.0.0.1", 0)
LOCKED = ListenOptions("127.0.0.1", 0, TOKEN)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    (tmp_path / "index.html").write_text("<!doctype html><title>a page</title>")
    return tmp_path


def make(where: ListenOptions, page: Path) -> web.Application:
    app = make_app(where, page)

    async def events(request: web.Request) -> web.StreamResponse:
        return await app[STREAMS].respond(request, lambda: [("whole", b"{}")])

    async def change(request: web.Request) -> web.Response:
        for number in range(int(request.query.get("times", "1"))):
            app[STREAMS].send(
                "change",
                json.dumps({"number": number, "long": "x" * int(request.query.get("size", "4096"))}).encode(),
            )
        return web.Response(text=str(len(app[STREAMS])))

    async def fail(request: web.Request) -> web.Response:
        raise ValueError("a defect")

    app.router.add_get("/events", events)
    app.router.add_post("/change", change)
    app.router.add_get("/fail", fail)
    return app


def fetch(url: str, path: str = "/", method: str = "GET", body: str = "", **headers: str) -> HTTPResponse:
    connection = HTTPConnection(urlsplit(url).netloc, timeout=30)
    connection.request(method, path, body, {name.replace("_", "-"): text for name, text in headers.items()})
    return connection.getresponse()


def login(url: str, token: str) -> HTTPResponse:
    form = {"Content_Type": "application/x-www-form-urlencoded"}
    return fetch(url, "/login", "POST", f"token={token}", **form)


def test_page_files_are_served_with_security_headers_and_others_are_refused(page: Path) -> None:
    (page / "page.js").write_text("")
    with served(make(HERE, page), HERE) as url:
        for path in ("/", "/page/page.js"):
            response = fetch(url, path)
            assert response.status == 200
            assert "default-src 'none'" in response.headers["Content-Security-Policy"]
            assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert fetch(url, "/page/../site.py").status == 404
        assert fetch(url, "/page/").status in (403, 404)


def test_foreign_host_header_is_refused(page: Path) -> None:
    with served(make(HERE, page), HERE) as url:
        assert fetch(url, Host="fleet.example").status == 403
        assert fetch(url, Host="localhost:1").status == 200
        assert fetch(url, Host="[::1]:1").status == 200


def test_post_from_another_origin_is_refused(page: Path) -> None:
    with served(make(HERE, page), HERE) as url:
        assert fetch(url, "/change", "POST", Origin="https://elsewhere.example").status == 403
        assert fetch(url, "/change", "POST", Origin=url.rstrip("/")).status == 200


def test_page_is_opened_by_token_or_by_the_cookie_of_its_login(page: Path) -> None:
    with served(make(LOCKED, page), LOCKED) as url:
        assert fetch(url).status == 401
        assert b"<form" in fetch(url).read()
        assert fetch(url, "/shared/absent.css").status == 404  # the form's own style needs no token
        cookie = login(url, TOKEN).headers["Set-Cookie"]
        assert TOKEN not in cookie and "HttpOnly" in cookie and "SameSite=Strict" in cookie
        assert fetch(url, Cookie=cookie.split(";")[0]).status == 200
        assert fetch(url, Authorization=f"Bearer {TOKEN}").status == 200
        assert fetch(url, Cookie="splitee=\xe9").status == 401


def test_wrong_tokens_are_delayed_and_the_right_one_is_not(page: Path) -> None:
    with served(make(LOCKED, page), LOCKED) as url:
        waited = [threading.Thread(target=login, args=(url, f"wrong-token-{n}")) for n in range(4)]
        for thread in waited:
            thread.start()
        assert login(url, TOKEN).status == 303
        assert any(thread.is_alive() for thread in waited)
        assert login(url, "another-wrong-token").status == 401


def test_browser_receives_the_whole_state_first_and_then_changes(page: Path) -> None:
    with served(make(HERE, page), HERE) as url, urllib.request.urlopen(f"{url}events", timeout=30) as stream:  # noqa: S310
        lines = (line.decode().strip() for line in stream)
        assert next(lines).startswith("retry:")
        assert [next(lines) for _ in range(4)][1:3] == ["event: whole", "data: {}"]
        fetch(url, "/change", "POST")
        assert next(lines) == "event: change"


def test_head_request_for_a_stream_gets_no_body_and_opens_none(page: Path) -> None:
    app = make(HERE, page)
    with (
        served(app, HERE) as url,
        socket.create_connection(("127.0.0.1", urlsplit(url).port), timeout=10) as client,
    ):
        client.sendall(b"HEAD /events HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        head, _, body = client.makefile("rb").read().partition(b"\r\n\r\n")
        assert (b"text/event-stream" in head, body) == (True, b"")
        assert len(app[STREAMS]) == 0


def test_browser_that_reads_nothing_is_disconnected_and_holds_no_other_up(page: Path) -> None:
    """The other has received every change before the next is made."""
    deaf = socket.socket()
    with served(make(HERE, page), HERE) as url, deaf:
        deaf.connect(("127.0.0.1", urlsplit(url).port or 0))
        deaf.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert deaf.recv(64)
        with urllib.request.urlopen(f"{url}events", timeout=30) as stream:  # noqa: S310
            changes = (line for line in stream if line.startswith(b'data: {"number"'))
            for _ in range(40):
                left = fetch(url, f"/change?times={MOST_QUEUED}", "POST").read()
                numbers = [json.loads(next(changes)[6:])["number"] for _ in range(MOST_QUEUED)]
                assert numbers == list(range(MOST_QUEUED))
                if left == b"1":
                    break
            else:
                pytest.fail("it is never cut off")


def test_queue_for_a_slow_browser_is_bounded_in_bytes(page: Path) -> None:
    slow = socket.socket()
    with served(make(HERE, page), HERE) as url, slow:
        slow.connect(("127.0.0.1", urlsplit(url).port or 0))
        slow.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert slow.recv(64)
        large = f"/change?times=1&size={MOST_QUEUED_BYTES - 1000}"
        assert [fetch(url, large, "POST").read() for _ in range(3)][-1] == b"0"
        while slow.recv(1 << 20):
            pass  # the site has closed it; data on its way still arrives


def test_browsers_beyond_the_limit_are_refused(page: Path) -> None:
    with served(make(HERE, page), HERE) as url:
        streams = [fetch(url, "/events") for _ in range(MOST_BROWSERS)]
        assert {response.status for response in streams} == {200}
        assert fetch(url, "/events").status == 503
        for response in streams:
            response.close()


def test_defect_is_reported_as_error_500_and_the_site_goes_on(page: Path) -> None:
    with served(make(HERE, page), HERE) as url:
        response = fetch(url, "/fail")
        assert (response.status, b"report it" in response.read()) == (500, True)
        assert fetch(url).status == 200


@pytest.mark.parametrize(
    ("request_line", "headers", "body"),
    [
        ("POST /login", {"Origin": "http://["}, ""),
        ("POST /login", {"Content-Type": "multipart/form-data"}, "token"),
        ("POST /login", {"Content-Type": "application/x-www-form-urlencoded; charset=none"}, "token=x"),
        ("POST /login", {"Content-Encoding": "gzip"}, "token=x"),
        ("POST /login", {"Content-Length": "many"}, ""),
        (f"GET /shared/{'x' * 300}", {}, ""),
        ("GET http://[", {}, ""),
    ],
)
def test_malformed_request_is_refused_and_logs_no_traceback(
    page: Path, caplog: pytest.LogCaptureFixture, request_line: str, headers: dict[str, str], body: str
) -> None:
    lines = [f"{request_line} HTTP/1.1", "Host: here", "Connection: close"]
    lines += [f"{name}: {text}" for name, text in ({"Content-Length": str(len(body))} | headers).items()]
    with (
        served(make(LOCKED, page), LOCKED) as url,
        socket.create_connection(("127.0.0.1", urlsplit(url).port), timeout=30) as client,
    ):
        client.sendall("\r\n".join([*lines, "", body]).encode())
        assert client.makefile("rb").readline().split()[1].startswith(b"4")
        assert fetch(url).status == 401
    assert not [record for record in caplog.records if record.exc_info]


def test_host_name_that_cannot_be_is_refused(page: Path) -> None:
    where = ListenOptions("two..dots", 0, TOKEN)
    with pytest.raises(ConfigError, match="no host can have this name"):
        serve(make_app(where, page), where, threading.Event(), print)


def test_port_in_use_is_refused(page: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = ListenOptions("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(ConfigError, match="the port is in use"):
            serve(make_app(where, page), where, threading.Event(), print)


@pytest.mark.parametrize("listen", ["", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000", ":-1"])
def test_invalid_listen_address_is_refused(listen: str) -> None:
    with pytest.raises(ConfigError, match="expected HOST:PORT"):
        listening(listen, None)


@pytest.mark.parametrize(
    ("listen", "host"), [("8080", "127.0.0.1"), ("[::1]:8080", "::1"), ("localhost:8080", "localhost")]
)
def test_loopback_address_needs_no_token(listen: str, host: str) -> None:
    assert listening(listen, None) == ListenOptions(host, 8080)


def test_address_beyond_loopback_needs_a_token(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs --token-file"):
        listening("0.0.0.0:8080", None)
    token = tmp_path / "token"
    token.write_text(f"{TOKEN}\n")
    assert listening("0.0.0.0:8080", token) == ListenOptions("0.0.0.0", 8080, TOKEN)  # noqa: S104


@pytest.mark.parametrize(
    ("text", "message"), [(b"", "at least"), (b"short", "at least"), (b"\xff" * 20, "ASCII")]
)
def test_invalid_or_missing_token_file_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    token = tmp_path / "token"
    token.write_bytes(text)
    with pytest.raises(ConfigError, match=message):
        listening("127.0.0.1:0", token)
    with pytest.raises(ConfigError, match="No such file"):
        listening("127.0.0.1:0", tmp_path / "absent")
