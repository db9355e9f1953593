# SPDX-License-Identifier: Apache-2.0
"""Which images of a folder are held out: the same ones for as long as a device keeps its state.

Images come into a folder and go from it. One that the network has been trained on must not judge it later, so
what an image is for it stays for, as long as it lies there; of those that are new, a share is held out.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from splitee.durable import write_atomically
from splitee_device.data.base import Indices

FILE = "division.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Division:
    """What the images of a folder are for, by their paths within it.

    Attributes:
        share: of each class that is held out.
    """

    share: float
    held_out: frozenset[str] = frozenset()
    training: frozenset[str] = frozenset()

    def divide(self, own: Indices, key: Callable[[int], str] | None) -> tuple[Indices, Indices]:
        """A class's images in two: those held out, and those to train on; each keeps the order of `own`.

        At least one is held out, and one is left to train on where there are two.
        """
        names = [key(int(index)) if key else "" for index in own]
        held_out = np.array([one in self.held_out for one in names], dtype=bool)
        is_new = np.array([one not in self.training for one in names], dtype=bool) & ~held_out
        wanted = min(max(round(self.share * len(own)), 1), len(own) - 1)
        more = np.flatnonzero(is_new)[: max(wanted - int(held_out.sum()), 0)]
        if not len(more) and not held_out.any():
            more = np.arange(wanted)  # all of them were trained on; without one, the class is never judged
        held_out[more] = True
        return own[held_out], own[~held_out]


def read_division(folder: Path, share: float) -> Division:
    """What is kept in a state directory; nothing, where that was of another share."""
    try:
        found = json.loads((folder / FILE).read_text())
        kept = Division(float(found["share"]), frozenset(found["held_out"]), frozenset(found["training"]))
    except FileNotFoundError:
        return Division(share)
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s: %s; its images are divided anew", folder / FILE, str(error).partition("\n")[0])
        return Division(share)
    return kept if kept.share == share else Division(share)


def keep_division(folder: Path, division: Division) -> None:
    content = {
        "share": division.share,
        "held_out": sorted(division.held_out),
        "training": sorted(division.training),
    }
    write_atomically(folder / FILE, json.dumps(content, indent=0).encode())
