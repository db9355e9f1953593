# SPDX-License-Identifier: Apache-2.0
"""A site of one page: its files, its headers, and the address at which it is served."""

from __future__ import annotations

import asyncio
import errno
import logging
import threading
from collections.abc import Callable
from pathlib import Path

from aiohttp import http_exceptions, web

from splitee.errors import ConfigError
from splitee_web.access import Access, Handler
from splitee_web.event_streams import EventStreams
from splitee_web.listening import ListenOptions

SHARED = Path(__file__).with_name("static")  # style and libraries that several pages use
LARGEST_REQUEST = 1 << 20  # bytes of a body
STREAMS = web.AppKey("streams", EventStreams)
HEADERS = {
    # Everything comes from this site, without inline scripts, and no other page may frame it.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "connect-src 'self'; font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}

log = logging.getLogger(__name__)
http_log = logging.getLogger(f"{__name__}.http")  # what aiohttp itself logs


def _is_no_fault_of_a_client(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, http_exceptions.HttpProcessingError | web.RequestPayloadError)


http_log.addFilter(_is_no_fault_of_a_client)


def make_app(where: ListenOptions, page: Path) -> web.Application:
    """An application that serves a page: its folder at /page/, index.html of it at /, and SHARED at /shared/.

    Callers add routes for its data; STREAMS are its server-sent events, closed at the end.
    """
    middlewares = [_one_line_for_an_error, Access(where).middleware]
    app = web.Application(middlewares=middlewares, client_max_size=LARGEST_REQUEST)
    app[STREAMS] = EventStreams()

    async def index(_request: web.Request) -> web.StreamResponse:
        return web.FileResponse(page / "index.html")

    async def end_streams(app: web.Application) -> None:
        app[STREAMS].close()

    app.router.add_get("/", index)
    app.router.add_static("/page/", page)
    app.router.add_static("/shared/", SHARED)
    app.on_response_prepare.append(_add_headers)
    app.on_shutdown.append(end_streams)
    return app


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)


@web.middleware
async def _one_line_for_an_error(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            raise web.HTTPNotFound from None  # no file has such a name
        log.exception("%s %s", request.method, request.path)
        return web.Response(status=500, text="a defect in splitee: please report it with the log\n")


def serve(
    app: web.Application, where: ListenOptions, stop: threading.Event, ready: Callable[[str], None]
) -> None:
    """Serves until `stop` is set, on an event loop of its own; `ready` is called with the page's URL.

    Raises:
        ConfigError: the address is not this machine's, or its port is taken.
    """
    asyncio.run(_serve(app, where, stop, ready))


async def _serve(
    app: web.Application, where: ListenOptions, stop: threading.Event, ready: Callable[[str], None]
) -> None:
    runner = web.AppRunner(
        app, access_log=None, logger=http_log, handler_cancellation=True, shutdown_timeout=1.0
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, where.host, where.port)
        try:
            await site.start()
        except OSError as error:
            raise ConfigError(_not_bound(where, error)) from None
        except UnicodeError:
            raise ConfigError(f"--listen {where.host}:{where.port}: no host can have this name") from None
        ready(where.url(runner.addresses[0][1]))
        await asyncio.to_thread(stop.wait)
    finally:
        await runner.cleanup()


def _not_bound(where: ListenOptions, error: OSError) -> str:
    address = f"--listen {where.host}:{where.port}"
    if error.errno == errno.EADDRINUSE:
        return f"{address}: the port is in use; choose another one"
    if error.errno == errno.EACCES:
        return f"{address}: ports below 1024 need root; choose a greater one"
    return f"{address}: {error.strerror or error}"
