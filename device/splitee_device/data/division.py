# SPDX-License-Identifier: Apache-2.0
"""Which of a device's images are held out: the same ones in every run, for as long as it keeps its state.

Images come into a folder, go from it, and are moved from one class to another. One that a network has been
trained on must not judge it, or one that goes on from its weights, later: so what an image is for it stays
for, and a copy of it is for the same. Of those that are new, a share is held out.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from splitee.durable import write_atomically
from splitee_device.data.base import Indices

FILE = "division.json"
REMEMBERED = 1 << 18  # images; where there are more, those that are not there any more are forgotten

Keys = tuple[str, ...]
"""By each of which an image is known; the first is kept."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Division:
    """What images are for, by their keys: also those that are not there any more, for they may come back.

    Attributes:
        share: of each class that is held out.
        here: the images that were there when they were last looked at.
        seed: by which images are shuffled, the same in every run; None: the first run's.
    """

    share: float
    held_out: frozenset[str] = frozenset()
    training: frozenset[str] = frozenset()
    here: frozenset[str] = frozenset()
    seed: int | None = None

    def divide(self, own: Indices, keys: Sequence[Keys] | None) -> tuple[Indices, Indices]:
        """A class's images in two: those held out, and those to train on; each keeps the order of `own`.

        At least one is held out, and one is left to train on where there are two.

        Args:
            keys: of each image of `own`; None: they have none, and are all new.
        """
        names = keys or [(str(index),) for index in own]
        held_out = np.array([not self.held_out.isdisjoint(one) for one in names], dtype=bool)
        is_new = np.array([self.training.isdisjoint(one) for one in names], dtype=bool) & ~held_out
        wanted = min(max(round(self.share * len(own)), 1), len(own) - 1)
        held_out[np.flatnonzero(is_new)[: max(wanted - int(held_out.sum()), 0)]] = True
        if held_out.all() or not held_out.any():  # each class is trained, and judged by some
            held_out = np.arange(len(own)) < wanted
        return own[held_out], own[~held_out]

    def after(self, held_out: Sequence[Keys], training: Sequence[Keys]) -> Division:
        """What is remembered once these images are for that; what is for both counts as trained on."""
        judges, trains = (frozenset(one[0] for one in those) for those in (held_out, training))
        here = judges | trains
        is_too_much = len(here | self.held_out | self.training) > REMEMBERED
        before = Division(self.share) if is_too_much else self
        return replace(
            self,
            held_out=(before.held_out | judges) - trains,
            training=(before.training - judges) | trains,
            here=here,
        )


def read_division(folder: Path, share: float) -> Division:
    """What is kept in a state directory; nothing, where that was of another share."""
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
        log.warning("%s: %s; its images are divided anew", folder / FILE, str(error).partition("\n")[0])
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
