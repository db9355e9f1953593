# SPDX-License-Identifier: Apache-2.0
"""Small records of a device's training, JSON files in its state."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TypeVar

import msgspec

from splitee.durable import write_atomically

T = TypeVar("T", bound=msgspec.Struct)

log = logging.getLogger(__name__)


def read_record(path: Path, kind: type[T], consequence: str) -> T | None:
    """The record that `write_record` has written; None: there is none, or it is damaged.

    `consequence`: of a damaged one; it ends the line that is logged then.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        log.warning("state: %s is unreadable (%s); %s", path, error, consequence)
        return None


def write_record(path: Path, record: msgspec.Struct) -> None:
    """Durable when this returns. Raises StateError."""
    write_atomically(path, json.dumps(msgspec.to_builtins(record)).encode())
