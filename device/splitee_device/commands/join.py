# SPDX-License-Identifier: Apache-2.0
"""`splitee join`: gives this device an identity in a fleet, with the code of an invitation."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

import click

from splitee.cli.command import Command, section
from splitee.cli.plain_text import echo
from splitee.cli.settings import switch
from splitee.errors import ConfigError, PairingEnded, SpliteeError
from splitee.pairing.code import read_code
from splitee.pairing.messages import PORT
from splitee.protocol.topics import NAME, check_name
from splitee_device.joining.exchange import Exchange, Hub, connected
from splitee_device.joining.identity_files import IdentityFiles, locked
from splitee_device.joining.unit import INSTALLED, start


@click.command(cls=Command)
@click.argument("host", metavar="HOST[:PORT]")
@click.argument("code", required=False, metavar="[CODE]")
@section(
    "Device",
    switch(
        "--id",
        "name",
        metavar="NAME",
        help="Name of this device in the fleet, unless the invitation gives it one.",
        show_default="its host name",
    ),
    switch(
        "--data",
        metavar="SPEC",
        help="Images to train on, as for `splitee device --data`: written into the settings.",
        show_default="what the settings say",
    ),
)
@section(
    "Files",
    switch(
        "--directory",
        type=click.Path(path_type=Path, file_okay=False),
        default=INSTALLED,
        show_default=True,
        metavar="DIR",
        help="Folder for device.toml, release.pub, and device/ with the certificate and its key.",
    ),
    switch("--force", is_flag=True, help="Replace the identity of another device or fleet in that folder."),
)
def join(
    host: str, code: str | None, name: str | None, data: str | None, directory: Path, force: bool
) -> None:
    """Join a fleet: type here what `splitee broker invite` shows on its hub.

    The key is made on this device and never leaves it. The hub signs for it after both have proved to each
    other that they know the code. Then the device's service is started, if install.sh has installed it. If
    CODE is left out, it is prompted for, so that it is in no list of processes.
    """
    hub = _hub(host)
    typed = read_code(code if code is not None else _prompted())
    if name is not None:
        check_name(name, "--id")
    if data is not None and not data.isprintable():
        raise ConfigError(f"--data {data!r}: the settings take printable characters only; rename the folder")
    before = os.umask(0o022)
    try:
        with locked(directory.absolute()):
            files = IdentityFiles(directory.absolute())
            with connected(hub, echo) as exchange:
                _join(exchange, files, typed, name, {} if data is None else {"data": data}, force)
    finally:
        os.umask(before)
    echo(start(files))


def _join(
    exchange: Exchange, files: IdentityFiles, code: str, own: str | None, more: dict[str, str], force: bool
) -> None:
    fleet, given = exchange.prove(code)
    name = given or own or _host_name()
    if own is not None and name != own:
        echo(f"the invitation is for {name}: --id {own} is ignored")
    if not force:
        files.check(fleet, name)
    files.write(exchange.request(fleet, name), more)
    echo(f"{name} is in fleet {fleet}: {files.settings}")
    try:
        exchange.confirm()
    except (OSError, SpliteeError) as error:
        echo(
            f"the hub has not confirmed it ({error}): unless it says that {name} has joined, run "
            f"`splitee broker invite {name}` there, and join again",
            err=True,
        )


def _hub(text: str) -> Hub:
    try:
        parts = urlsplit(f"//{text}")
        if parts.hostname and parts.netloc == text and "@" not in text and parts.port != 0:
            return Hub(parts.hostname, parts.port or PORT)
    except ValueError:
        pass
    raise ConfigError(f"HOST {text!r}: expected a name or an address, or HOST:PORT; an IPv6 address in []")


def _prompted() -> str:
    if not sys.stdin.isatty():
        raise ConfigError(
            "CODE: expected what `splitee broker invite` shows; there is no terminal to enter it"
        )
    return str(click.prompt("Code"))


def _host_name() -> str:
    name = socket.gethostname().partition(".")[0]
    if not NAME.fullmatch(name):
        raise PairingEnded(f"this machine's name {name!r} is not valid in a fleet: give one with --id")
    return name
