# SPDX-License-Identifier: Apache-2.0
"""Folders that other accounts may enter: Mosquitto, if root starts it, reads its files as its own user."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def open_to_all(directory: Path) -> Path:
    """Let every account enter `directory` and its parents below the system's folder for temporary files."""
    for inside in (directory, *directory.parents):
        if inside == Path(tempfile.gettempdir()) or inside.stat().st_uid != os.getuid():
            break
        inside.chmod(0o755)
    return directory
