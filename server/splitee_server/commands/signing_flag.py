# SPDX-License-Identifier: Apache-2.0
"""The flag for the key that signs releases, of `splitee server` and `splitee release`."""

from __future__ import annotations

from pathlib import Path

import click

from splitee.cli.settings import setting

signing_key = setting(
    "--signing-key",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Private key that releases are signed with: server/release.key of `splitee broker init`. Devices "
    "that have its public half take only signed releases.",
    show_default="none",
)
