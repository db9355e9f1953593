# SPDX-License-Identifier: Apache-2.0
"""A device's measured choice for a run, kept so that a restart continues with the same bits."""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from splitee.durable import write_atomically
from splitee.errors import StateError
from splitee_device.profiler.store import FOLDER


class KeptChoice:
    """A device's choice of one thing, such as a codec, in its state directory."""

    def __init__(self, state: Path, name: str, choices: Collection[str]) -> None:
        self._path = state / FOLDER / f"{name}.json"
        self._name = name
        self._choices = choices

    def of(self, run: str) -> str | None:
        """The choice for `run`; None: there is none, or it cannot be read."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            kept = json.loads(self._path.read_bytes())
            if kept["run"] == run and kept[self._name] in self._choices:
                return str(kept[self._name])
        return None

    def keep(self, run: str, choice: str) -> None:
        """Keeps the choice, durably. Raises StateError: it cannot be kept."""
        folder = self._path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StateError(f"state directory {folder}: {error.strerror}; choose another") from None
        write_atomically(self._path, json.dumps({"run": run, self._name: choice}).encode())
