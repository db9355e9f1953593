# SPDX-License-Identifier: Apache-2.0
"""Commands of a user who has forgotten sudo: the service's folders are closed to all others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from splitee.errors import SpliteeError
from splitee_device.capture.folder import Folder
from splitee_device.commands.label import label
from splitee_device.commands.predict import predict
from splitee_device.commands.rollback import rollback
from splitee_device.commands.trust import trust
from splitee_device.commands.upgrade import upgrade
from splitee_device.inference.latest_image import LatestImage
from splitee_device.labelling.unlabelled import UnlabelledFolders

NOBODY = 65_534


@pytest.fixture
def closed(public_path: Path) -> Iterator[Path]:
    """A folder in one that this process may not enter; root becomes another user."""
    folder = public_path / "state" / "inner"
    folder.mkdir(parents=True)
    with _closed(folder.parent):
        yield folder


@contextmanager
def _closed(folder: Path) -> Iterator[None]:
    folder.chmod(0)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(0o755)


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (rollback, ("--models", "{}")),
        (trust, ("--models", "{}")),
        (upgrade, ("--list", "--software", "{}")),
        (predict, ("--model", "{}", "image.jpg")),
        (label, ("--data", "data", "--unlabelled", "{}", "--model", "{}")),
    ],
    ids=lambda value: value.name if isinstance(value, click.Command) else "",
)
def test_closed_folder_is_reported_in_one_line(
    closed: Path, command: click.Command, flags: tuple[str, ...]
) -> None:
    given = [flag.format(closed) for flag in flags]
    error = CliRunner().invoke(command, given, standalone_mode=False).exception
    assert isinstance(error, SpliteeError), error
    assert str(error) == f"{closed}: Permission denied; run it by sudo, or as the account that owns it"


@pytest.mark.parametrize(
    "open_folder",
    [Folder, lambda path: UnlabelledFolders([path]), lambda path: LatestImage(path / "latest.jpg")],
    ids=["watch", "unlabelled", "keep-latest"],
)
def test_closed_folder_of_images_is_reported_in_one_line(closed: Path, open_folder: type[Folder]) -> None:
    with pytest.raises(SpliteeError, match="Permission denied; run it by sudo") as refused:
        open_folder(closed)
    assert "\n" not in str(refused.value)
