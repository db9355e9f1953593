# SPDX-License-Identifier: Apache-2.0
"""A site: who is let in, what its headers forbid, how its streams end; over real sockets."""

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
from splitee_web.event_streams import MOST, WAITING, WAITING_BYTES
from splitee_web.listening import Listening, listening
from splitee_web.site import STREAMS, make_app, serve

TOKEN = "0123456789abcdef-token"  # noqa: S105 -- made up
HERE = Listening("127.0.0.1", 0)
LOCKED = Listening("127.0.0.1", 0, TOKEN)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    (tmp_path / "index.html").write_text("<!doctype html><title>a page</title>")
    return tmp_path


def make(where: Listening, page: Path) -> web.Application:
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


def ask(url: str, path: str = "/", method: str = "GET", body: str = "", **headers: str) -> HTTPResponse:
    connection = HTTPConnection(urlsplit(url).netloc, timeout=30)
    connection.request(method, path, body, {name.replace("_", "-"): text for name, text in headers.items()})
    return connection.getresponse()


def login(url: str, token: str) -> HTTPResponse:
    form = {"Content_Type": "application/x-www-form-urlencoded"}
    return ask(url, "/login", "POST", f"token={token}", **form)


def test_the_page_and_its_files_come_with_headers_that_let_nothing_in_from_elsewhere(page: Path) -> None:
    (page / "page.js").write_text("")
    with served(make(HERE, page), HERE) as url:
        for path in ("/", "/page/page.js"):
            response = ask(url, path)
            assert response.status == 200
            assert "default-src 'none'" in response.headers["Content-Security-Policy"]
            assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert ask(url, "/page/../site.py").status == 404
        assert ask(url, "/page/").status in (403, 404)


def test_a_name_that_leads_to_loopback_is_refused(page: Path) -> None:
    with served(make(HERE, page), HERE) as url:
        assert ask(url, Host="fleet.example").status == 403
        assert ask(url, Host="localhost:1").status == 200
        assert ask(url, Host="[::1]:1").status == 200


def test_another_site_changes_nothing(page: Path) -> None:
    with served(make(HERE, page), HERE) as url:
        assert ask(url, "/change", "POST", Origin="https://elsewhere.example").status == 403
        assert ask(url, "/change", "POST", Origin=url.rstrip("/")).status == 200


def test_a_token_opens_the_page_and_its_cookie_goes_on_to(page: Path) -> None:
    with served(make(LOCKED, page), LOCKED) as url:
        assert ask(url).status == 401
        assert b"<form" in ask(url).read()
        assert ask(url, "/shared/absent.css").status == 404  # the form's own style needs no token
        cookie = login(url, TOKEN).headers["Set-Cookie"]
        assert TOKEN not in cookie and "HttpOnly" in cookie and "SameSite=Strict" in cookie
        assert ask(url, Cookie=cookie.split(";")[0]).status == 200
        assert ask(url, Authorization=f"Bearer {TOKEN}").status == 200
        assert ask(url, Cookie="splitee=\xe9").status == 401


def test_wrong_tokens_wait_longer_and_longer_and_the_right_one_does_not(page: Path) -> None:
    with served(make(LOCKED, page), LOCKED) as url:
        waited = [threading.Thread(target=login, args=(url, f"wrong-token-{n}")) for n in range(4)]
        for thread in waited:
            thread.start()
        assert login(url, TOKEN).status == 303
        assert any(thread.is_alive() for thread in waited)
        assert login(url, "another-wrong-token").status == 401


def test_a_browser_gets_the_whole_first_and_then_what_changes(page: Path) -> None:
    with served(make(HERE, page), HERE) as url, urllib.request.urlopen(f"{url}events", timeout=30) as stream:  # noqa: S310
        lines = (line.decode().strip() for line in stream)
        assert next(lines).startswith("retry:")
        assert [next(lines) for _ in range(4)][1:3] == ["event: whole", "data: {}"]
        ask(url, "/change", "POST")
        assert next(lines) == "event: change"


def test_a_browser_that_reads_nothing_is_cut_off_and_holds_nobody_up(page: Path) -> None:
    deaf = socket.socket()
    with served(make(HERE, page), HERE) as url, deaf:
        deaf.connect(("127.0.0.1", urlsplit(url).port or 0))
        deaf.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert deaf.recv(64)
        for _ in range(40):
            if ask(url, f"/change?times={WAITING}", "POST").read() == b"0":
                break
        else:
            pytest.fail("it is never cut off")


def test_what_waits_for_a_slow_browser_is_bounded_in_bytes(page: Path) -> None:
    slow = socket.socket()
    with served(make(HERE, page), HERE) as url, slow:
        slow.connect(("127.0.0.1", urlsplit(url).port or 0))
        slow.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert slow.recv(64)
        large = f"/change?times=1&size={WAITING_BYTES - 1000}"
        assert [ask(url, large, "POST").read() for _ in range(3)][-1] == b"0"
        while slow.recv(1 << 20):
            pass  # it is hung up on; what was on its way still comes


def test_no_more_browsers_than_the_site_has_room_for(page: Path) -> None:
    with served(make(HERE, page), HERE) as url:
        looking = [ask(url, "/events") for _ in range(MOST)]
        assert {response.status for response in looking} == {200}
        assert ask(url, "/events").status == 503
        for response in looking:
            response.close()


def test_a_defect_is_one_line_and_the_site_goes_on(page: Path) -> None:
    with served(make(HERE, page), HERE) as url:
        response = ask(url, "/fail")
        assert (response.status, b"report it" in response.read()) == (500, True)
        assert ask(url).status == 200


def test_a_port_that_is_taken_is_said(page: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = Listening("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(ConfigError, match="the port is in use"):
            serve(make_app(where, page), where, threading.Event(), print)


@pytest.mark.parametrize("listen", ["", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000", ":-1"])
def test_an_address_that_is_none(listen: str) -> None:
    with pytest.raises(ConfigError, match="expected HOST:PORT"):
        listening(listen, None)


@pytest.mark.parametrize(
    ("listen", "host"), [("8080", "127.0.0.1"), ("[::1]:8080", "::1"), ("localhost:8080", "localhost")]
)
def test_an_address_of_this_machine_takes_no_token(listen: str, host: str) -> None:
    assert listening(listen, None) == Listening(host, 8080)


def test_an_address_beyond_loopback_takes_a_token(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs --token-file"):
        listening("0.0.0.0:8080", None)
    token = tmp_path / "token"
    token.write_text(f"{TOKEN}\n")
    assert listening("0.0.0.0:8080", token) == Listening("0.0.0.0", 8080, TOKEN)  # noqa: S104


@pytest.mark.parametrize(
    ("text", "said"), [(b"", "at least"), (b"short", "at least"), (b"\xff" * 20, "ASCII")]
)
def test_a_token_that_is_none(tmp_path: Path, text: bytes, said: str) -> None:
    token = tmp_path / "token"
    token.write_bytes(text)
    with pytest.raises(ConfigError, match=said):
        listening("127.0.0.1:0", token)
    with pytest.raises(ConfigError, match="No such file"):
        listening("127.0.0.1:0", tmp_path / "absent")
