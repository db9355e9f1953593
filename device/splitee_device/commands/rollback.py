# SPDX-License-Identifier: Apache-2.0
"""`splitee rollback`: puts the previous model into service again."""

from __future__ import annotations

from pathlib import Path

import click

from splitee.cli.command import Command, section
from splitee.cli.plain_text import echo
from splitee.cli.settings import setting, settings_file
from splitee.errors import ModelError
from splitee_device.commands.infer import DIRECTORY
from splitee_device.inference.model_store import ModelStore


@click.command(cls=Command)
@settings_file
@section(
    "Models",
    setting(
        "--models",
        type=DIRECTORY,
        required=True,
        metavar="DIR",
        help="Folder in which `splitee infer` keeps models.",
    ),
)
def rollback(models: Path) -> None:
    """Put the previous model into service again; a running `splitee infer` switches to it at once."""
    if not models.is_dir():
        raise ModelError(f"{models}: there are no models here; --models names what `splitee infer` uses")
    echo(f"in service: {ModelStore(models).roll_back()}")
