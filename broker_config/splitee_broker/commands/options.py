# SPDX-License-Identifier: Apache-2.0
"""Options that the commands of `splitee broker` share: the directory, and the validity of certificates."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from splitee.cli.bounds import whole
from splitee.cli.settings import switch

DIRECTORY = click.Path(path_type=Path, file_okay=False)
DAYS = 5 * 365

in_directory = switch(
    "--directory",
    type=DIRECTORY,
    metavar="DIR",
    default=Path("/etc/splitee"),
    show_default=True,
    envvar="SPLITEE_BROKER_DIRECTORY",
    help="Folder that holds authority/, broker/, server/, viewer/, homeassistant/ and bundles/.",
)
valid_for = switch(
    "--days",
    type=whole(1, 7000),
    metavar="DAYS",
    default=DAYS,
    show_default=True,
    help="Time for which certificates are valid, in days.",
)
as_folders = switch("--folder", is_flag=True, help="Write a folder for each device instead of a tar file.")


def private(command: Callable[..., Any]) -> Callable[..., Any]:
    """Runs the command so that only its owner can read what it creates."""

    @wraps(command)
    def with_umask(**arguments: Any) -> Any:
        before = os.umask(0o077)
        try:
            return command(**arguments)
        finally:
            os.umask(before)

    return with_umask
