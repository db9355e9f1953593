# SPDX-License-Identifier: Apache-2.0
"""Names that a class folder may have, and names of other folders beside the classes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from splitee.cli.plain_text import plain
from splitee.durable import sync_folder, unwritable
from splitee.errors import DataError
from splitee.protocol.fields import LONGEST_CLASS_NAME
from splitee_device.data.folder import TEST, TRAINING, is_foreign

# Hidden, so that training skips them.
NONE_OF_THESE = ".none-of-these"  # the images that a person has labelled as being of no class
WORKSPACE = ".labelling"  # the journal, and computed features
LONGEST_FILE_NAME = 255  # bytes


def check_class_name(name: str, known: Iterable[str]) -> str:
    """Checks `name` as the name of a new class, and returns it.

    Raises:
        DataError: no class folder can have it, or there is a class with this name, regardless of capitals.
    """
    reason = _reason_against(name)
    if not reason and (same := [one for one in known if one.casefold() == name.casefold()]):
        reason = f"there is the class {plain(same[0])}"
    if reason:
        raise DataError(f"a class cannot be called {plain(name[:LONGEST_CLASS_NAME])!r}: {reason}")
    return name


def _reason_against(name: str) -> str:
    """Why a class cannot have this name; "": it can."""
    if not name or name != name.strip():
        return "expected a name without spaces around it"
    if len(name) > LONGEST_CLASS_NAME or len(name.encode(errors="replace")) > LONGEST_FILE_NAME:
        return f"expected at most {LONGEST_CLASS_NAME} characters and {LONGEST_FILE_NAME} bytes"
    if "/" in name or "\\" in name or not name.isprintable():
        return "expected printable characters, and no / or \\"
    if is_foreign(name):
        return "training passes over folders that begin with a dot, and system folders"
    if name.lower() in TRAINING | TEST:
        return "it is the name of a part of a data set"
    return ""


def make_folder(path: Path) -> None:
    """Makes a class's folder, durably. Raises StateError: it cannot be made."""
    if path.is_dir():
        return
    try:
        path.mkdir()
        sync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error) from None
