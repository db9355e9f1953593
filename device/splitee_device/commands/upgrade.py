# SPDX-License-Identifier: Apache-2.0
"""`splitee upgrade`: installs new software on this device by hand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import click

from splitee.cli.command import Command, section
from splitee.cli.plain_text import echo
from splitee.cli.settings import setting, settings_file, switch
from splitee.cli.verbosity import log_options
from splitee.errors import ConfigError, SoftwareError
from splitee.inference.signatures import ReleaseKey
from splitee_device.upgrade.installer import SoftwareInstaller
from splitee_device.upgrade.software import TRIAL, TRIED, Software


@click.command(cls=Command)
@settings_file
@log_options()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@section(
    "Software",
    setting(
        "--software",
        type=click.Path(path_type=Path),
        required=True,
        metavar="DIR",
        help="Folder in which the device keeps software: that of `splitee-start`.",
    ),
    setting(
        "--software-key",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Public key that software must be signed by: the software.pub of the device's bundle.",
        show_default="none, FILE needs one",
    ),
    switch(
        "--allow-downgrade", is_flag=True, help="Install FILE even if it is not newer than what is in use."
    ),
    switch("--roll-back", is_flag=True, help="Try what was in service before, instead of a FILE."),
    switch("--list", "only_list", is_flag=True, help="Show what is in service, and what was before."),
)
def upgrade(
    file: Path | None,
    software: Path,
    software_key: Path | None,
    allow_downgrade: bool,
    roll_back: bool,
    only_list: bool,
) -> None:
    """Install FILE, which `splitee pack` wrote, beside the software in service, and have it tried.

    A running `splitee-start` tries it at once. It stays in service if the broker accepts its connection
    within a minute; otherwise the previous software runs again.
    """
    if [file is not None, roll_back, only_list].count(True) != 1:
        raise ConfigError("give one of FILE, --roll-back and --list")
    if not software.is_dir():
        raise SoftwareError(f"{software}: no such folder; --software names that of `splitee-start`")
    kept = Software(software.absolute())
    installer = SoftwareInstaller(kept)
    if only_list:
        _become_owner(kept.path)
        for line in _describe(kept, installer):
            echo(line)
        return
    if file is None:
        _become_owner(kept.path)
        version = installer.roll_back()
    else:
        if software_key is None:
            raise ConfigError("expected --software-key: only signed software is taken")
        key = ReleaseKey.read(software_key, "software")
        with _opened(file) as opened:
            _become_owner(kept.path)
            version = installer.install(opened, key, allow_downgrade=allow_downgrade)
    echo(f"splitee {version} is installed, and is tried as soon as `splitee-start` runs")


def _opened(file: Path) -> BinaryIO:
    """Opens the file before this process becomes another user, who might not be allowed to."""
    try:
        return file.open("rb")
    except OSError as error:
        raise SoftwareError(f"{file}: {error.strerror}") from None


def _become_owner(folder: Path) -> None:
    """Becomes the user that the service runs as, which must be able to remove the installation one day.

    It also ensures that nothing which that user has put into the folder, such as a Python, runs as root.
    """
    owner = folder.stat()
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)
        os.environ["HOME"] = str(folder)


def _describe(kept: Software, installer: SoftwareInstaller) -> list[str]:
    lines = [f"in service: {installer.installed()}"]
    if (before := kept.before) is not None:
        lines.append(f"before it: {installer.version_of(before)}")
    for link, state in ((TRIAL, "to be tried"), (TRIED, "being tried")):
        if (name := kept.target(link)) is not None:
            lines.append(f"{state}: {installer.version_of(name)}")
    if (failure := kept.failure()) is not None:
        lines.append(f"given up: {installer.version_of(failure[0])}: {failure[1]}")
    return lines
