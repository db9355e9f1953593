# SPDX-License-Identifier: Apache-2.0
"""Finds the exported model for a path: a model directory, or the one in service of a device."""

from __future__ import annotations

from pathlib import Path

from splitee.errors import ModelError
from splitee.inference.manifest import MANIFEST

# Where a model may be, if the path is the model directory, STATE/models, or STATE.
_PLACES = (Path(), Path("current"), Path("models") / "current")


def find_model(path: Path) -> Path:
    """The model directory that `path` is, or the one in service of the device whose models or state it is.

    Raises ModelError: there is none. If `path` is a server's, the message names the devices' models.
    """
    for place in _PLACES:
        if (path / place / MANIFEST).exists():
            return path / place
    for devices in (path / "devices", path / "models" / "devices"):
        if names := sorted(folder.name for folder in devices.glob("*") if (folder / MANIFEST).exists()):
            raise ModelError(
                f"{path} holds the models of {len(names)} devices: name one, {devices / names[0]}"
            )
    raise ModelError(
        f"no model at {path} ({MANIFEST}: no such file), and none in service in a device's state there: "
        "`splitee export` makes one, a run's end or `splitee release` delivers one"
    )
