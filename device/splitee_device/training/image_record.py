# SPDX-License-Identifier: Apache-2.0
"""Since which round a device trains on the same images: soft labels of an earlier round belong to others."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from splitee_device.data.image_sets import LabelledImages
from splitee_device.training.records import read_record, write_record

IMAGE_RECORD = "trained-images.json"  # in a device's state


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
    before = read_record(path, _Record, "its images count as those of all rounds")
    if before is not None and before.digest == digest:
        return before.since
    found = _Record(digest, 0 if before is None else number)
    write_record(path, found)
    return found.since


def _digest(images: LabelledImages) -> str:
    """Of the images' names and labels, in the order of their numbers."""
    found = hashlib.sha256(images.labels.tobytes())
    for number in range(len(images)):
        found.update(f"{images.name(number)}\0".encode(errors="surrogateescape"))
    return found.hexdigest()
