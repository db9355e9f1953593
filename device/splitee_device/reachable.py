# SPDX-License-Identifier: Apache-2.0
"""Whether a user's folder is there, for an account that may not look everywhere."""

from __future__ import annotations

from pathlib import Path

from splitee.errors import StateError

HINT = "run it by sudo, or as the account that owns it"


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder. Raises StateError: this account may not look there."""
    try:
        return path.is_dir()
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}; {HINT}") from None
