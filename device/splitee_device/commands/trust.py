# SPDX-License-Identifier: Apache-2.0
"""`splitee trust`: what this device requires of released models."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from splitee.cli.command import Command, section
from splitee.cli.plain_text import echo, plain
from splitee.cli.settings import setting, settings_file, switch
from splitee.errors import ModelError
from splitee_device.commands.infer import DIRECTORY
from splitee_device.inference.trust import Trust, Trusted


@click.command(cls=Command)
@settings_file
@section(
    "Models",
    setting(
        "--models",
        type=DIRECTORY,
        required=True,
        metavar="DIR",
        help="Folder in which the device keeps models.",
    ),
    switch(
        "--forget",
        is_flag=True,
        help="Forget the requirements: the next release sets them again. For a change of network or classes.",
    ),
)
def trust(models: Path, forget: bool) -> None:
    """Show what this device requires of released models: network, structure, and the newest signature.

    A release may change only the weights; anything else is refused. The key that must sign releases is set
    by --release-key of `splitee device` and `splitee infer`.
    """
    if not models.is_dir():
        raise ModelError(f"{models}: there are no models here; --models names what the device uses")
    kept = Trust(models)
    if forget:
        kept.forget()
        echo("forgotten: the next release sets the requirements again")
        return
    for line in _describe(kept.read()):
        echo(line)


def _describe(trusted: Trusted) -> list[str]:
    if not trusted.network:
        lines = ["nothing is pinned: the next release sets it"]
    else:
        shape = "x".join(map(str, trusted.input_shape))
        lines = [f"network: {plain(trusted.network)}, {trusted.classes} classes, images {shape}"]
    for cut, graphs in sorted(trusted.graphs.items()):
        kinds = [
            f"{kind} {digest[:12]}"
            for kind, digest in (("fp32", graphs.fp32), ("int8", graphs.int8))
            if digest
        ]
        lines.append(f"cut {cut}: {', '.join(kinds)}")
    if trusted.signed_at:
        lines.append(
            f"newest signature: {datetime.fromtimestamp(trusted.signed_at / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
        )
    return lines
