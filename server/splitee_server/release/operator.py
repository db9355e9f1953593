# SPDX-License-Identifier: Apache-2.0
"""The operator's side of an order: sends it to the server, then the files that the server lacks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from splitee.cli.words import size
from splitee.errors import BrokerRefused, ConfigError, ExitCode, ModelError, SpliteeError, Stalled, Unwinding
from splitee.mqtt.events import Connected, Message
from splitee.mqtt.link import Link
from splitee.protocol import routes
from splitee.protocol.fleet import ServerStatus
from splitee.protocol.gate import Gate
from splitee.protocol.release_orders import LARGEST_PLAN, ReleaseOrder, ReleaseReply, ReleaseUpload
from splitee.protocol.topics import Topics

TICK = 0.2  # seconds between two checks of the clock
NO_STATUS = 2.0  # seconds after which no server runs if the broker has retained no status
REQUEST_AGAIN = 5.0  # seconds without a reply before the order is sent again
PART = 256 << 10  # bytes

Source = bytes | Path
Sent = Callable[[int], object]


class NoServer(Unwinding):
    """No server runs that could carry an order out."""


class Operator:
    """One order of one command."""

    def __init__(self, connection: Link, topics: Topics, *, wait: float, stop: Callable[[], bool]) -> None:
        """`wait`: seconds without a reply, after which it gives up."""
        self._connection = connection
        self._topics = topics
        self._wait = wait
        self._stop = stop
        self._gate = Gate(topics, (routes.RELEASED, routes.SERVER_STATUS), log_first=0)
        self._server: ServerStatus | None = None

    def submit(
        self, order: ReleaseOrder, files: Mapping[str, Source], sent: Sent = lambda _bytes: None
    ) -> str:
        """Send an order; returns the server's reply, once the order is carried out.

        Args:
            order: it may be sent several times.
            files: that the server may request, by SHA-256.
            sent: called with the number of bytes after each upload.

        Raises:
            NoServer: there is none.
            ConfigError: the plan is too large; its size grows with that of the models' manifests.
            SpliteeError: the server has refused it, with the server's exit code; or it does not reply.
        """
        if order.plan_size > LARGEST_PLAN:  # the server would read no such order
            raise ConfigError(
                f"a release's plan has at most {size(LARGEST_PLAN)}, this one has {size(order.plan_size)}: "
                "release to some of the devices at a time"
            )
        self._connection.subscribe(*self._gate.filters)
        last_reply = started = last_sent = time.monotonic()
        self._send_order(order)
        while not self._stop():
            event = self._connection.receive(TICK)
            now = time.monotonic()
            if self._connection.refused:
                raise BrokerRefused(
                    "the broker does not let this client release: use the server's identity "
                    "(--config server/server.toml)"
                )
            received = self._gate.read(event) if isinstance(event, Message) else None
            message = received.message if received is not None else None
            if isinstance(message, ServerStatus):
                self._server = message
            elif isinstance(message, ReleaseReply) and message.request == order.request:
                last_reply = last_sent = now
                if not message.want:
                    return _outcome(message)
                sent(self._send(message, files))
            elif isinstance(event, Connected) or now - last_sent > REQUEST_AGAIN:
                last_sent = now
                self._send_order(order)
            is_gone = self._server is None and now - started > NO_STATUS
            if last_reply == started and (is_gone or (self._server and self._server.state == "offline")):
                raise NoServer
            if now - last_reply > self._wait:
                raise Stalled(
                    f"no reply from the server within {self._wait:.0f} s; the same command goes on from here"
                )
        raise Stalled("stopped before the server had everything; the same command goes on from there")

    def _send_order(self, order: ReleaseOrder) -> None:
        self._connection.publish(routes.RELEASE.topic(self._topics), order.encode())

    def _send(self, reply: ReleaseReply, files: Mapping[str, Source]) -> int:
        """Send the next bytes of the requested file; returns their number."""
        source = files.get(reply.want)
        if source is None:
            raise ModelError(f"the server wants {reply.want[:12]}, which is not part of this release")
        count = min(PART, self._connection.max_packet - 256)
        data = _read(source, reply.offset, count)
        if not data:
            raise ModelError(
                f"the server wants more of {reply.want[:12]} than there is: was the file changed?"
            )
        upload = ReleaseUpload(request=reply.request, sha256=reply.want, offset=reply.offset, data=data)
        self._connection.publish(routes.RELEASE_UPLOAD.topic(self._topics), upload.encode())
        return len(data)


def _read(source: Source, offset: int, count: int) -> bytes:
    if isinstance(source, bytes):
        return source[offset : offset + count]
    try:
        with source.open("rb") as file:
            file.seek(offset)
            return file.read(count)
    except OSError as error:
        raise ModelError(f"{source}: {error.strerror}") from None


def _outcome(reply: ReleaseReply) -> str:
    """Raises SpliteeError: the server has not carried it out."""
    if not reply.code:
        return reply.message
    failure = SpliteeError(reply.message)
    failure.exit_code = {int(code): code for code in ExitCode}.get(reply.code, ExitCode.INTERNAL)
    raise failure
