# SPDX-License-Identifier: Apache-2.0
"""Server-sent events: sends changes to all browsers that show a page."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable

from aiohttp import web

MOST_BROWSERS = 50  # browsers at once
MOST_QUEUED = 256  # events that may wait for a slow browser; then it must reconnect, and gets everything anew
MOST_QUEUED_BYTES = 16 << 20  # likewise
KEEP_ALIVE_EVERY = 15.0  # seconds of silence after which a comment is sent: proxies close silent connections
RECONNECT_MS = 1000  # milliseconds after which a browser reconnects

Event = tuple[str, bytes]  # its name, and one line of JSON


class _Outbox:
    """The events that wait for one browser, encoded for the stream."""

    def __init__(self, transport: asyncio.Transport | None) -> None:
        self._transport = transport
        self._events: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._bytes = 0

    def put(self, event: bytes) -> bool:
        """False: MOST_QUEUED events or MOST_QUEUED_BYTES wait already."""
        if self._events.qsize() >= MOST_QUEUED or self._bytes + len(event) > MOST_QUEUED_BYTES:
            return False
        self._bytes += len(event)
        self._events.put_nowait(event)
        return True

    async def get(self) -> bytes | None:
        """The next event; None: the stream is over."""
        event = await self._events.get()
        self._bytes -= len(event or b"")
        return event

    def end(self) -> None:
        """End the stream; waiting events are dropped."""
        while not self._events.empty():
            self._events.get_nowait()
        self._events.put_nowait(None)

    def abort(self) -> None:
        """Close the connection, even if the browser reads nothing: it reconnects, and gets all anew."""
        self.end()
        if self._transport is not None:
            self._transport.abort()


class EventStreams:
    """The open streams; only on the event loop's thread."""

    def __init__(self) -> None:
        self._streams: set[_Outbox] = set()

    def __len__(self) -> int:
        return len(self._streams)

    def send(self, name: str, data: bytes) -> None:
        """Send an event to every browser. Never waits: a browser that is too far behind is disconnected."""
        event = _encode(name, data)
        for stream in tuple(self._streams):
            if not stream.put(event):
                self._streams.discard(stream)
                stream.abort()

    def close(self) -> None:
        """Ends every stream."""
        while self._streams:
            self._streams.pop().end()

    async def respond(self, request: web.Request, first: Callable[[], Iterable[Event]]) -> web.StreamResponse:
        """Stream `first()`, the present state, and from then on all events that are sent.

        Raises:
            HTTPServiceUnavailable: there are MOST_BROWSERS already.
        """
        if len(self._streams) >= MOST_BROWSERS:
            raise web.HTTPServiceUnavailable(text=f"{MOST_BROWSERS} browsers look at this page already\n")
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
        )
        await response.prepare(request)
        if request.method == "HEAD":
            return response  # without a body
        stream = _Outbox(request.transport)
        self._streams.add(stream)
        try:  # no event comes between the present state and the stream
            begin = [f"retry: {RECONNECT_MS}\n\n".encode(), *(_encode(name, data) for name, data in first())]
            await response.write(b"".join(begin))
            await self._pass_on(stream, response)
        except ConnectionResetError:
            pass  # the browser has gone
        finally:
            self._streams.discard(stream)
        return response

    @staticmethod
    async def _pass_on(stream: _Outbox, response: web.StreamResponse) -> None:
        while True:
            event: bytes | None = b":\n\n"
            with contextlib.suppress(TimeoutError):
                event = await asyncio.wait_for(stream.get(), KEEP_ALIVE_EVERY)
            if event is None:
                return
            await response.write(event)


def _encode(name: str, data: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)
