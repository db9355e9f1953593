# SPDX-License-Identifier: Apache-2.0
"""The fleet's page as an application: /events, /api/fleet, and the thread that feeds them."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web

from splitee.mqtt.options import LinkOptions
from splitee.protocol.fleet_view import FleetView
from splitee_web.fleet.broadcaster import Broadcaster
from splitee_web.fleet.changes import Changes, encode_fleet
from splitee_web.fleet.feed import Feed
from splitee_web.listening import ListenOptions
from splitee_web.site import STREAMS, make_app

PAGE = Path(__file__).with_name("static")
DISCONNECT_TIMEOUT = 2.0  # seconds that the feed has to leave the broker

log = logging.getLogger(__name__)


class FleetSite:
    """`stop` is set when the feed has failed, and `failure` is why."""

    def __init__(self, where: ListenOptions, options: LinkOptions, stop: threading.Event) -> None:
        """Raises ConfigError: see `Feed`."""
        self.failure: Exception | None = None
        self.app = make_app(where, PAGE)
        self._broadcaster = Broadcaster(self.app[STREAMS], encode_fleet(FleetView(options.fleet).snapshot()))
        self._feed = Feed(options, self._on_changes)
        self._stop = stop
        self._loop: asyncio.AbstractEventLoop | None = None
        self.app.router.add_get("/events", self._events)
        self.app.router.add_get("/api/fleet", self._whole)
        self.app.cleanup_ctx.append(self._feeding)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        return await self.app[STREAMS].respond(request, self._broadcaster.first)

    async def _whole(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._broadcaster.whole(), content_type="application/json")

    async def _feeding(self, _app: web.Application) -> AsyncIterator[None]:
        self._loop = asyncio.get_running_loop()
        thread = threading.Thread(target=self._run, name="feed", daemon=True)
        thread.start()
        yield
        self._feed.stop()
        await asyncio.to_thread(thread.join, DISCONNECT_TIMEOUT)

    def _run(self) -> None:
        try:
            self._feed.run()
        except Exception as error:
            self.failure = error
            self._stop.set()

    def _on_changes(self, changes: Changes) -> None:
        assert self._loop is not None, "it runs while the application does"
        self._loop.call_soon_threadsafe(self._broadcaster.take, changes)
