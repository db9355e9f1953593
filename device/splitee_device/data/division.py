# SPDX-License-Identifier: Apache-2.0
"""Which of a device's images are held out: the same in every run, as long as it keeps its state.

Images are added to a folder, removed, and moved between classes. An image that a network was trained on must
not evaluate it, or a network that continues from its weights. Therefore an image keeps its use, and a copy of
it has the same use. Of new images, a share is held out.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from splitee.durable import write_atomically
from splitee_device.data.base import Indices

FILE = "division.json"
REMEMBERED = 1 << 18  # images; if there are more, images that no longer exist are forgotten

Keys = tuple[str, ...]
"""Each of them identifies an image; the first is stored."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Division:
    """The use of images, by their keys; also of removed ones, because they may come back.

    Attributes:
        share: the share of each class that is held out.
        present: the images that existed when they were last opened.
        seed: for shuffling images, the same in every run; None: the first run's.
    """

    share: float
    held_out: frozenset[str] = frozenset()
    training: frozenset[str] = frozenset()
    present: frozenset[str] = frozenset()
    seed: int | None = None

    def divide(self, own: Indices, keys: Sequence[Keys] | None) -> tuple[Indices, Indices]:
        """Divides a class's images into held-out and training images; both keep the order of `own`.

        At least one is held out. If there are two or more, at least one is left for training. Copies of an
        image go together, unless all of the class are copies of one.

        Args:
            keys: of each image of `own`; None: they have none, and are all new.
        """
        names = keys or [(str(index),) for index in own]
        held_out = np.array([not self.held_out.isdisjoint(one) for one in names], dtype=bool)
        is_new = np.array([self.training.isdisjoint(one) for one in names], dtype=bool) & ~held_out
        wanted = min(max(round(self.share * len(own)), 1), len(own) - 1)
        held_out[_new_to_hold_out(names, is_new, wanted - int(held_out.sum()))] = True
        if not held_out.any():  # all were trained on; without a held-out image, the class is never evaluated
            held_out = np.arange(len(own)) < wanted
        return own[held_out], own[~held_out]

    def after(self, held_out: Sequence[Keys], training: Sequence[Keys]) -> Division:
        """The division after images were used so. An image with both uses counts as a training image."""
        held_out_keys, training_keys = (frozenset(one[0] for one in those) for those in (held_out, training))
        present = held_out_keys | training_keys
        is_too_much = len(present | self.held_out | self.training) > REMEMBERED
        before = Division(self.share) if is_too_much else self
        return replace(
            self,
            held_out=(before.held_out | held_out_keys) - training_keys,
            training=(before.training - held_out_keys) | training_keys,
            present=present,
        )


def _new_to_hold_out(names: Sequence[Keys], is_new: npt.NDArray[np.bool_], wanted: int) -> list[int]:
    """The places of `wanted` new images, or of fewer, each with all of its copies.

    If every image has more copies than are wanted, they are those of the image with the fewest.
    """
    copies: dict[str, list[int]] = {}
    for place in map(int, np.flatnonzero(is_new)):
        copies.setdefault(names[place][0], []).append(place)
    chosen: list[int] = []
    for places in copies.values():
        if len(places) <= wanted - len(chosen):
            chosen += places
    fewest = min(copies.values(), key=len, default=[])
    return chosen or (fewest if wanted > 0 and len(fewest) < len(names) else [])


def read_division(folder: Path, share: float) -> Division:
    """The division in a state directory; an empty one if the kept one has another share."""
    try:
        found = json.loads((folder / FILE).read_text())
        kept = Division(
            float(found["share"]),
            frozenset(found["held_out"]),
            frozenset(found["training"]),
            seed=None if found.get("seed") is None else int(found["seed"]),
        )
    except FileNotFoundError:
        return Division(share)
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s: %s; its images are divided again", folder / FILE, str(error).partition("\n")[0])
        return Division(share)
    return kept if kept.share == share else Division(share, seed=kept.seed)


def keep_division(folder: Path, division: Division) -> None:
    content = {
        "share": division.share,
        "seed": division.seed,
        "held_out": sorted(division.held_out),
        "training": sorted(division.training),
    }
    write_atomically(folder / FILE, json.dumps(content, indent=0).encode())
