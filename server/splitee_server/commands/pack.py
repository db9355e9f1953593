# SPDX-License-Identifier: Apache-2.0
"""`splitee pack`: software for devices, as one signed file."""

from __future__ import annotations

import re
from pathlib import Path

import click

from splitee.cli.command import Command, section
from splitee.cli.plain_text import echo
from splitee.cli.settings import settings_file, switch
from splitee.cli.words import size
from splitee.errors import ConfigError
from splitee.inference.signatures import ReleaseSigner
from splitee.software.packing import describe
from splitee.software.packing import pack as write_pack
from splitee_server.commands.signing_flag import signing_key


@click.command(cls=Command)
@settings_file
@click.argument("wheels", nargs=-1, type=click.Path(path_type=Path))
@section(
    "Software",
    signing_key,
    switch(
        "--out",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="File to write.",
        show_default="splitee-VERSION-PYTHON-MACHINE.wheels",
    ),
    switch(
        "--index",
        metavar="URL",
        help="Package index that has the wheels: the file then lists them, and devices fetch them there.",
        show_default="none, the file has them",
    ),
)
def pack(wheels: tuple[Path, ...], signing_key: Path | None, out: Path | None, index: str | None) -> None:
    """Make a signed file of WHEELS, which devices install by `splitee upgrade` or `splitee release`.

    WHEELS must include splitee's own wheel. Packages that a device already has may be left out.
    """
    if not wheels:
        raise ConfigError(
            "nothing to pack: name splitee's own wheel, and those of packages that change with it"
        )
    if signing_key is None:
        raise ConfigError("expected --signing-key: devices take only signed software")
    if index is not None and not re.fullmatch(r"https?://[!-~]{1,500}", index):
        raise ConfigError(f"--index {index}: expected an address, https://HOST/PATH")
    manifest = describe(wheels, index or "")
    path = out or Path(f"splitee-{manifest.version}-{manifest.python}-{manifest.machine}.wheels")
    write_pack(wheels, manifest, ReleaseSigner(signing_key), path)
    echo(f"{path}: splitee {manifest.version} for {manifest.machine} and Python {manifest.python}")
    for wheel in manifest.wheels:
        echo(f"  {wheel.name}, {size(wheel.size)}")
