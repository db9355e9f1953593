# SPDX-License-Identifier: Apache-2.0
"""Server-sent events: sends changes to all browsers that show a page."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable

from aiohttp import web

MOST = 50  # browsers at once
WAITING = 256  # events that may wait for a slow browser; then it must reconnect, and gets everything anew
WAITING_BYTES = 16 << 20  # likewise
ALIVE = 15.0  # seconds of silence after which a comment is sent: proxies close silent connections
AGAIN = 1000  # milliseconds after which a browser reconnects

Event = tuple[str, bytes]  # its name, and one line of JSON


class _Waiting:
    """The events that wait for one browser, encoded for the stream."""

    def __init__(self, transport: asyncio.Transport | None) -> None:
        self._transport = transport
        self._events: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._bytes = 0

    def put(self, event: bytes) -> bool:
        """False: WAITING events or WAITING_BYTES wait already."""
        if self._events.qsize() >= WAITING or self._bytes + len(event) > WAITING_BYTES:
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
        self._streams: set[_Waiting] = set()

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
            HTTPServiceUnavailable: there are MOST browsers already.
        """
        if len(self._streams) >= MOST:
            raise web.HTTPServiceUnavailable(text=f"{MOST} browsers look at this page already\n")
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
        )
        await response.prepare(request)
        stream = _Waiting(request.transport)
        self._streams.add(stream)
        try:  # no event comes between the present state and the stream
            begin = [f"retry: {AGAIN}\n\n".encode(), *(_encode(name, data) for name, data in first())]
            await response.write(b"".join(begin))
            await self._pass_on(stream, response)
        except ConnectionResetError:
            pass  # the browser has gone
        finally:
            self._streams.discard(stream)
        return response

    @staticmethod
    async def _pass_on(stream: _Waiting, response: web.StreamResponse) -> None:
        while True:
            event: bytes | None = b":\n\n"
            with contextlib.suppress(TimeoutError):
                event = await asyncio.wait_for(stream.get(), ALIVE)
            if event is None:
                return
            await response.write(event)


def _encode(name: str, data: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)
