# SPDX-License-Identifier: Apache-2.0
"""Since which round a device trains on the same images: soft labels of an earlier round belong to others."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import msgspec

from splitee.durable import write_atomically
from splitee_device.data.image_sets import LabelledImages

IMAGE_RECORD = "trained-images.json"  # in a device's state

log = logging.getLogger(__name__)


class _Record(msgspec.Struct, frozen=True):
    digest: str
    since: int


def trained_since(folder: Path, images: LabelledImages, number: int) -> int:
    """The first round that was trained on `images`, numbered and labelled as they are now.

    Args:
        folder: of the device's state, in which the images are recorded durably before they are trained on.
        number: of the round that is about to be trained.

    Returns:
        0: nothing else is known to have been trained on.
    """
    path, digest = folder / IMAGE_RECORD, _digest(images)
    before = _read(path)
    if before is not None and before.digest == digest:
        return before.since
    found = _Record(digest, 0 if before is None else number)
    write_atomically(path, json.dumps(msgspec.to_builtins(found)).encode())
    return found.since


def _digest(images: LabelledImages) -> str:
    """Of the images' names and labels, in the order of their numbers."""
    found = hashlib.sha256(images.labels.tobytes())
    for number in range(len(images)):
        found.update(f"{images.name(number)}\0".encode(errors="surrogateescape"))
    return found.hexdigest()


def _read(path: Path) -> _Record | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Record)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        log.warning("state: %s is unreadable (%s); its images count as those of all rounds", path, error)
        return None
