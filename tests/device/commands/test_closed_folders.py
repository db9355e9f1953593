# SPDX-License-Identifier: Apache-2.0
"""Commands of a user who has forgotten sudo: the service's folders are closed to all others."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest
from commands import call
from other_user import not_as_root

from splitee.cli.main import splitee
from splitee.errors import ExitCode

COMMANDS = ["rollback", "trust", "upgrade", "predict", "label", "infer"]


@pytest.fixture
def closed(public_path: Path) -> Iterator[Path]:
    """A folder in one that this process may not enter; root becomes another user."""
    folder = public_path / "state" / "inner"
    folder.mkdir(parents=True)
    context = click.Context(splitee)  # another user might not find the commands' modules
    assert all(splitee.get_command(context, name) for name in COMMANDS)
    for module in ("encodings.idna", "splitee_web.site"):
        import_module(module)
    folder.parent.chmod(0)
    try:
        with not_as_root():
            yield folder
    finally:
        folder.parent.chmod(0o755)


@pytest.mark.parametrize(
    "flags",
    [
        ("rollback", "--models", "{}"),
        ("trust", "--models", "{}"),
        ("upgrade", "--list", "--software", "{}"),
        ("predict", "--model", "{}", "image.jpg"),
        ("label", "--data", "data", "--unlabelled", "{}", "--model", "{}"),
        ("infer", "--id", "pi-1", "--models", "models", "--watch", "{}"),
        ("infer", "--id", "pi-1", "--models", "models", "--watch", "/", "--keep-latest", "{}/latest.jpg"),
    ],
    ids=" ".join,
)
def test_closed_folder_is_reported_in_one_line(
    closed: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...]
) -> None:
    code, line = call(capsys, *(flag.format(closed) for flag in flags))
    assert code == ExitCode.STATE
    assert line.startswith(f"splitee: {closed}")
    assert "Permission denied; run it by sudo, or as the account that owns it" in line


def test_path_that_is_too_long_is_reported_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    path = "a" * 300
    assert call(capsys, "rollback", "--models", path) == (
        ExitCode.STATE,
        f"splitee: {path}: File name too long",
    )
