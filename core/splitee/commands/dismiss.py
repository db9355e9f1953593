# SPDX-License-Identifier: Apache-2.0
"""`splitee dismiss`: tell the running server that devices are gone for good."""

from __future__ import annotations

import logging
import time
from contextlib import closing

import click

from splitee.cli.bounds import number
from splitee.cli.command import Command, section
from splitee.cli.link_options import link_options
from splitee.cli.plain_text import echo
from splitee.cli.settings import setting, settings_file, switch
from splitee.cli.verbosity import log_options
from splitee.errors import BrokerRefused, ConfigError, ExitCode, SpliteeError, Stalled
from splitee.mqtt.events import Connected, Message
from splitee.mqtt.link import Link
from splitee.mqtt.options import LinkOptions
from splitee.protocol import routes
from splitee.protocol.fleet import MOST_DISMISSED, Dismissal, DismissalReply, ServerStatus
from splitee.protocol.gate import Gate
from splitee.protocol.topics import Topics, check_name

CHECK_EVERY = 0.2  # seconds between two checks of the clock, and of what the broker refuses
NO_STATUS = 6.0  # seconds without a status after which no server is assumed to run; it sends one every 5


@click.command(cls=Command)
@settings_file
@log_options(logging.WARNING)
@click.argument("devices", nargs=-1, required=True, metavar="DEVICE...")
@section(
    "Dismissal",
    switch("--undo", is_flag=True, help="Let the devices in again."),
    setting(
        "--wait",
        type=number(0),
        default=60.0,
        metavar="SECONDS",
        help="How long to wait for the server's reply, in seconds.",
    ),
)
@link_options
def dismiss(devices: tuple[str, ...], undo: bool, link: LinkOptions, wait: float) -> None:
    """Tell the running server that these devices are gone for good: the run goes on without them.

    Their training in committed rounds stays. The command needs the server's identity (--config
    server/server.toml).
    """
    for device in devices:
        check_name(device, "DEVICE")
    request = Dismissal(request=time.time_ns(), devices=tuple(dict.fromkeys(devices)), undo=undo)
    if len(request.devices) > MOST_DISMISSED:
        raise ConfigError(f"expected at most {MOST_DISMISSED} devices at once, got {len(request.devices)}")
    with closing(
        Link(link.address, f"splitee-{link.fleet}-dismiss-{request.request}", tls=link.tls)
    ) as connection:
        reply = _await_reply(connection, Topics(link.fleet), request, link, wait)
    if reply.code:
        raise _failure(reply)
    echo(reply.message)


def _await_reply(
    connection: Link, topics: Topics, request: Dismissal, link: LinkOptions, wait: float
) -> DismissalReply:
    """The server's reply. The request is repeated after each reconnection, which changes nothing.

    Raises:
        BrokerRefused: the broker does not let this identity dismiss devices.
        Stalled: no server runs, or it does not reply within `wait` seconds.
    """
    gate = Gate(topics, (routes.DISMISSED, routes.SERVER_STATUS), log_first=0)
    connection.subscribe(*gate.filters)
    connection.open(link.connect_timeout)
    server: ServerStatus | None = None
    started = time.monotonic()
    while (waited := time.monotonic() - started) < wait:
        event = connection.receive(min(CHECK_EVERY, wait))
        if isinstance(event, Connected):
            connection.publish(routes.DISMISS.topic(topics), request.encode())
        if connection.refused:
            raise BrokerRefused(
                f"broker {link.address} does not let this client dismiss devices: it takes the server's "
                "identity (--config server/server.toml)"
            )
        received = gate.read(event) if isinstance(event, Message) else None
        match received.message if received is not None else None:
            case ServerStatus() as server:
                pass
            case DismissalReply() as reply if reply.request == request.request:
                return reply
        if (server is None and waited > NO_STATUS) or (server is not None and server.state == "offline"):
            raise Stalled(
                f"no server runs for fleet {link.fleet!r} at {link.address}, so no device was dismissed: "
                "start `splitee server` first"
            )
    raise Stalled(
        f"no reply of `splitee server` within {wait:.0f} s: start it if it does not run (`splitee serve` "
        "does not reply); otherwise repeat the command, with a longer --wait"
    )


def _failure(reply: DismissalReply) -> SpliteeError:
    """The server's failure, as an error with its exit code."""
    failure = SpliteeError(reply.message)
    known = {int(code): code for code in ExitCode}
    failure.exit_code = known.get(reply.code, ExitCode.INTERNAL)
    return failure
