# SPDX-License-Identifier: Apache-2.0
"""`splitee broker invite`: lets devices join with a code, for a few minutes."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import click

from splitee.cli.bounds import OutOfBounds, given, whole
from splitee.cli.command import Command, section
from splitee.cli.plain_text import echo
from splitee.cli.settings import switch
from splitee.cli.signals import stop_on_signals
from splitee.errors import ConfigError, PairingEnded
from splitee.pairing.code import new_code, read_code
from splitee.pairing.messages import PORT
from splitee_broker.authority import check_device
from splitee_broker.commands.options import in_directory, private, valid_for
from splitee_broker.pairing.conversation import PairingServer
from splitee_broker.pairing.hub_certificate import hub_context
from splitee_broker.pairing.invitation import TRIES, End, Invitation
from splitee_broker.pairing.listener import PairingListener
from splitee_broker.pairing.registrar import Registrar

UNITS = {"s": 1, "m": 60, "h": 3600}
LONGEST_VALIDITY = 24 * 3600  # seconds
MOST_DEVICES = 1000


class Duration(click.ParamType[int]):
    """A time such as 90s, 15m or 2h, in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"(\d{1,6})([smh])", str(value))
        seconds = int(found[1]) * UNITS[found[2]] if found else 0
        if not 0 < seconds <= LONGEST_VALIDITY:
            raise OutOfBounds(f"{given(value, param, ctx)}: such as 90s, 15m or 2h, at most 24h", ctx, param)
        return seconds


@click.command("invite", cls=Command)
@click.argument("name", required=False, default="", metavar="[NAME]")
@section(
    "Invitation",
    switch(
        "--valid",
        "seconds",
        type=Duration(),
        default="15m",
        show_default=True,
        metavar="TIME",
        help="Time for which the code is valid: 90s, 15m, 2h.",
    ),
    switch(
        "--count",
        type=whole(1, MOST_DEVICES),
        default=1,
        show_default=True,
        metavar="COUNT",
        help="Number of devices that may join with the code, each under its own name.",
    ),
    switch(
        "--port",
        type=whole(0, 65535),
        default=PORT,
        show_default=True,
        metavar="PORT",
        help="Port on which to wait for them; 0: any free port.",
    ),
    switch(
        "--reload",
        metavar="COMMAND",
        help="Command with which the broker reads its access files again, for devices that had an identity.",
        show_default="with systemctl, if splitee-broker runs",
    ),
)
@section("Files", in_directory, valid_for)
@private
def invite(
    name: str, seconds: int, count: int, port: int, reload: str | None, directory: Path, days: int
) -> None:
    """Let a device join with a code: print the command to type on it, and wait until it has joined.

    NAME is the device's name; without it, the device uses its host name, which must be new to the fleet. With
    the NAME of a device that has an identity, it is paired again: when it has the new identity, the old one
    is revoked. The invitation ends when it is used, after its time, or with the fifth wrong code.
    """
    if name:
        check_device(name, "NAME")
    if name and count > 1:
        raise ConfigError(f"--count {count}: a NAME is for one device; leave out one of both")
    registrar = Registrar(directory, days, reload)
    context, certificate = hub_context()
    code = new_code()
    listener = PairingListener(port, context, _print_line)
    old = registrar.valid(name) if name else None
    if old is not None:
        echo(f"{name} has a certificate until {old.until:%Y-%m-%d}: it is revoked once the new one is stored")
    invitation = Invitation(read_code(code), name, seconds, count)
    echo(f"splitee join {_hub_address(registrar.host, listener.port)} {code}")
    stop = stop_on_signals()
    host = PairingServer(invitation, registrar, certificate, _print_line)
    listener.serve(host.receive, lambda: invitation.end is None and not stop.is_set())
    host.finish()
    if stop.is_set() and invitation.end is not End.USED:
        raise click.Abort
    _check_outcome(invitation, count)


def _print_line(line: str) -> None:
    """Prints a line. A script may have read only the first line and closed the pipe."""
    try:
        echo(line)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # so that later lines, and the exit, find it open
        os.close(nowhere)


def _hub_address(host: str, port: int) -> str:
    named = f"[{host}]" if ":" in host else host
    return named if port == PORT else f"{named}:{port}"


def _check_outcome(invitation: Invitation, count: int) -> None:
    """Raises PairingEnded: not all invited devices have joined."""
    if invitation.end is End.EXPIRED:
        joined = f"{count - invitation.left} of {count} devices have joined"
        raise PairingEnded(f"the invitation has expired: {joined}; run `splitee broker invite` again")
    if invitation.end is End.GUESSED:
        raise PairingEnded(
            f"{TRIES} wrong codes came: the invitation is void, and nobody joined by them; find out who "
            "tries, then run `splitee broker invite` again"
        )
