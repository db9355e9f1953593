# SPDX-License-Identifier: Apache-2.0
"""Who may see a page: browsers with the token, and no request that another site has caused."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs, urlsplit

from aiohttp import web

from splitee.log_limits import FirstFew
from splitee_web.listening import ListenOptions, is_loopback

COOKIE = "splitee"
LOGIN = "/login"
DELAY = 0.25  # seconds that the first wrong token waits; each further one waits twice as long
LONGEST_DELAY = 8.0  # seconds
LONGEST_FORM = 1 << 14  # bytes of a login's body that are read for the token
MOST_WAITING = 64  # wrong tokens that wait at once; more are refused

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger(__name__)

FORM = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Token</title><link rel="stylesheet" href="/shared/base.css">
<main><h1>Token</h1><p>{said}</p>
<form method="post" action="/login">
<label>Token <input type="password" name="token" autocomplete="current-password" autofocus required></label>
<button>Open</button></form></main>
"""


class Access:
    """Checks each request before it is handled.

    Without a token the page is for browsers on this machine only: a request must name it by a loopback
    name, so that no other site reaches it by a name of its own (DNS rebinding).

    Attributes:
        wrong: tokens that were wrong, so far.
    """

    def __init__(self, where: ListenOptions) -> None:
        self._token = where.token
        self._ticket = _ticket(where.token) if where.token is not None else ""
        self._waiting = 0
        self._log_wrong = FirstFew()
        self.wrong = 0

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self._is_foreign(request):
            raise web.HTTPForbidden(text="this page does not serve requests from another site\n")
        if self._token is None or request.path.startswith("/shared/"):
            return await handler(request)
        if request.path == LOGIN and request.method == "POST":
            return await self._login(request)
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self._is_ticket(request.cookies.get(COOKIE, "")) or self._is_token(given):
            return await handler(request)
        if given:
            await self._slow_down(request)
        return _form("This page needs a token: see --token-file.")

    def _is_foreign(self, request: web.Request) -> bool:
        """Whether another site made the request, or reaches this one by a host name of its own."""
        if self._token is None and not is_loopback(_host_name(request)):
            return True
        if request.method in ("GET", "HEAD"):
            return False
        origin = request.headers.get("Origin")
        return origin is not None and _host_and_port(origin) != request.host

    async def _login(self, request: web.Request) -> web.StreamResponse:
        if not self._is_token(await _token_in_form(request)):
            await self._slow_down(request)
            return _form("The token is wrong.")
        response = web.Response(status=303, headers={"Location": "/"})
        response.set_cookie(COOKIE, self._ticket, httponly=True, samesite="Strict", max_age=30 * 86_400)
        return response

    def _is_token(self, given: str) -> bool:
        return self._token is not None and hmac.compare_digest(
            given.encode(errors="replace"), self._token.encode()
        )

    def _is_ticket(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(errors="replace"), self._ticket.encode())

    async def _slow_down(self, request: web.Request) -> None:
        """Delay the reply to a wrong token; a right one is never delayed."""
        self.wrong += 1
        if self._log_wrong.due():
            log.warning("a wrong token from %s (%d so far)", request.remote, self.wrong)
        if self._waiting >= MOST_WAITING:
            raise web.HTTPTooManyRequests(text="too many wrong tokens\n")
        self._waiting += 1
        try:
            await asyncio.sleep(min(DELAY * 2 ** min(self.wrong - 1, 30), LONGEST_DELAY))
        finally:
            self._waiting -= 1


def _ticket(token: str) -> str:
    """The value of the cookie: it proves that the browser knew the token, and does not reveal it."""
    return hmac.new(token.encode(), b"splitee page", hashlib.sha256).hexdigest()


async def _token_in_form(request: web.Request) -> str:
    """The token that a login's body gives, whatever the body is; "": none."""
    try:
        body = await request.read()
    except web.RequestPayloadError:  # it is not compressed as its header says
        return ""
    return parse_qs(body[:LONGEST_FORM].decode(errors="replace")).get("token", [""])[0].strip()


def _host_and_port(origin: str) -> str | None:
    """As a request's Host header gives them; None: it is no URL."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _host_name(request: web.Request) -> str:
    """The name by which a request calls this machine, without port and brackets; "": none."""
    try:
        return urlsplit(f"//{request.host}").hostname or ""
    except ValueError:
        return ""


def _form(said: str) -> web.Response:
    return web.Response(status=401, text=FORM.format(said=said), content_type="text/html")
