# SPDX-License-Identifier: Apache-2.0
"""What a device keeps beside its weights: some of its images, and the region of images that it uses."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from splitee.durable import write_atomically
from splitee.errors import ConfigError, ModelError
from splitee.samples.fitting import Pixels, Region

# In a device's state and in its model directory; they are never sent.
SAMPLES = "samples.npz"  # exported models are tested on them
REGION = "region.json"
RELEASES = "releases"  # the folder of a store of models that holds each model's directory
MAX_BYTES = 32 << 20  # of each kind of images


@dataclass(frozen=True)
class Samples:
    """`held_out` uint8 (N, C, H, W) with their `labels` int64 (N,); `training` uint8 (M, C, H, W)."""

    held_out: Pixels
    labels: npt.NDArray[np.int64]
    training: Pixels

    def encode(self) -> bytes:
        buffer = io.BytesIO()
        np.savez(buffer, held_out=self.held_out, labels=self.labels, training=self.training)
        return buffer.getvalue()

    @classmethod
    def read(cls, directory: Path) -> Samples:
        """The samples in a state or model directory. Raises ModelError: none, or broken ones."""
        path = directory / SAMPLES
        try:
            with path.open("rb") as file:
                return cls.load(file, str(path))
        except FileNotFoundError:
            raise ModelError(f"{directory} has no {SAMPLES}, the device's held-out images") from None
        except OSError as error:
            raise ModelError(f"{path}: {error.strerror}") from None

    @classmethod
    def load(cls, file: IO[bytes], name: str) -> Samples:
        """From an open file. Raises ModelError: it has other content."""
        try:
            with np.load(file, allow_pickle=False) as arrays:
                samples = cls(arrays["held_out"], arrays["labels"], arrays["training"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ModelError(f"{name}: expected held-out images as a device stores them ({error})") from None
        samples._check(name)
        return samples

    def _check(self, name: str) -> None:
        both = (self.held_out, self.training)
        sound = all(images.dtype == np.uint8 and images.ndim == 4 for images in both)
        if not sound or self.labels.shape != self.held_out.shape[:1] or self.labels.dtype.kind != "i":
            raise ModelError(f"{name}: expected uint8 images (N, C, H, W) with a label each")


def sample_indices(count: int, most: int, each: int) -> npt.NDArray[np.intp]:
    """Places of at most `most` of `count` images of `each` bytes, evenly spread, within MAX_BYTES."""
    kept = min(count, most, max(MAX_BYTES // each, 1))
    return np.arange(kept) * count // kept


def save_region(directory: Path, region: Region | None) -> None:
    """Save the region of images that the device of this state or model directory uses; None: all."""
    if region is None:
        (directory / REGION).unlink(missing_ok=True)
    else:
        write_atomically(directory / REGION, json.dumps({"region": str(region)}).encode())


def load_region(directory: Path) -> Region | None:
    """The region of images that the device of a state or model directory uses; None: all.

    For a release in a device's store of models, it is the store's. Raises ModelError: the file is damaged.
    """
    place = directory.resolve()
    path = (place.parent.parent if place.parent.name == RELEASES else place) / REGION
    try:
        return Region.parse(json.loads(path.read_bytes())["region"])
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from None
    except (ConfigError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ModelError(f"{path} is damaged: expected a region; give --region, or delete it") from None
