# SPDX-License-Identifier: Apache-2.0
"""Server-sent events: what has changed, to every browser that looks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable

from aiohttp import web

MOST = 50  # browsers at once
WAITING = 256  # events that may wait for a slow browser; then it has to come again, and gets all anew
ALIVE = 15.0  # seconds of silence after which a comment is sent: a proxy closes what is silent
AGAIN = 1000  # milliseconds after which a browser comes again

Event = tuple[str, bytes]  # its name, and one line of JSON


class EventStreams:
    """The streams that are open; everything on the event loop's thread."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[Event | None]] = set()

    def __len__(self) -> int:
        return len(self._queues)

    def send(self, name: str, data: bytes) -> None:
        """To every browser. Never waits: one that has not taken its last WAITING events is cut off."""
        for queue in tuple(self._queues):
            try:
                queue.put_nowait((name, data))
            except asyncio.QueueFull:
                self._cut_off(queue)

    def close(self) -> None:
        """Ends every stream."""
        for queue in tuple(self._queues):
            self._cut_off(queue)

    def _cut_off(self, queue: asyncio.Queue[Event | None]) -> None:
        self._queues.discard(queue)
        while not queue.empty():
            queue.get_nowait()
        queue.put_nowait(None)

    async def respond(self, request: web.Request, first: Callable[[], Iterable[Event]]) -> web.StreamResponse:
        """Streams `first()`, the whole as it is now, and from then on what is sent.

        Raises:
            HTTPServiceUnavailable: MOST browsers look already.
        """
        if len(self._queues) >= MOST:
            raise web.HTTPServiceUnavailable(text=f"{MOST} browsers look at this page already\n")
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
        )
        await response.prepare(request)
        queue: asyncio.Queue[Event | None] = asyncio.Queue(WAITING)
        self._queues.add(queue)
        try:
            await response.write(f"retry: {AGAIN}\n\n".encode())
            for name, data in first():
                await response.write(_encode(name, data))
            await self._pass_on(queue, response)
        except ConnectionResetError:
            pass  # the browser has gone
        finally:
            self._queues.discard(queue)
        return response

    @staticmethod
    async def _pass_on(queue: asyncio.Queue[Event | None], response: web.StreamResponse) -> None:
        while True:
            event: Event | None = ("", b"")
            with contextlib.suppress(TimeoutError):
                event = await asyncio.wait_for(queue.get(), ALIVE)
            if event is None:
                return
            await response.write(_encode(*event) if event[0] else b":\n\n")


def _encode(name: str, data: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)
