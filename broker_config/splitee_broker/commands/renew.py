# SPDX-License-Identifier: Apache-2.0
"""`splitee broker renew`: new certificates before the old ones end."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click

from splitee.cli.bounds import whole
from splitee.cli.command import Command, section
from splitee.cli.plain_text import echo
from splitee.cli.settings import switch
from splitee_broker.authority import Authority, Issued, Role
from splitee_broker.commands.options import as_folders, in_directory, private, valid_for
from splitee_broker.files import RELOAD
from splitee_broker.renewal import renew, to_renew

WITHIN = 60  # days: twice the time of the warnings before a certificate ends


@click.command("renew", cls=Command)
@click.argument("ids", nargs=-1, metavar="[ID]...")
@section(
    "Files",
    in_directory,
    valid_for,
    as_folders,
    switch(
        "--within",
        type=whole(0, 7000),
        metavar="DAYS",
        help="Renew certificates that end within this time, in days.",
        show_default=f"{WITHIN}; named ones are renewed whenever they end",
    ),
)
@private
def renew_identities(
    ids: tuple[str, ...], directory: Path, within: int | None, folder: bool, days: int
) -> None:
    """Renew the certificates that expire soon, or those of the given devices, server, viewer or broker.

    Nothing is revoked: the old certificates stay valid until they end.
    """
    if within is None and not ids:
        within = WITHIN
    with closing(Authority(directory / "authority")) as authority:
        lines = to_renew(authority, tuple(dict.fromkeys(ids)), within)
        for line in lines:
            written = renew(authority, line, days, directory, as_folder=folder)
            echo(f"{written}: {_next_step(line, written)}; the old one ends {line.until:%Y-%m-%d}")
    if not lines:
        echo(f"nothing to renew: no certificate ends within {within} days")


def _next_step(line: Issued, written: Path) -> str:
    """What must be done before the new certificate is in force."""
    if line.role is Role.DEVICE:
        how = f", then: device/install.sh --bundle {written.name}" if written.suffix == ".tar" else ""
        return f"carry it to {line.name}{how}"
    if line.role is Role.BROKER:
        return RELOAD
    return {
        Role.SERVER: "restart splitee server",
        Role.HEALTH: "in force at once",
        Role.VIEWER: "in force at once, here; copy it to where else it is used",
        Role.HOME_ASSISTANT: "give it to Home Assistant again, see docs/how-to/watch.md",
    }[line.role]
