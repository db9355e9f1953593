# SPDX-License-Identifier: Apache-2.0
"""Features of images and predictions of the model in service; without a model, pooled pixels."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from splitee.inference.graphs import ClientModel
from splitee.inference.manifest import MANIFEST
from splitee.inference.uncertainty import Array, normalized_entropy, softmax
from splitee.samples.fitting import Pixels, Preparation, Region
from splitee.samples.storage import load_region
from splitee_device.inference.find_model import find_model

PIXELS = Preparation((3, 32, 32))  # how images are prepared without a model
CELLS = 8  # a side, of 4 x 4 pixels each


class Extractor:
    """Computes a vector of features for each prepared image, and the exit's logits.

    Attributes:
        preparation: how images must be prepared.
        class_names: of the logits; () without a model.
        identity: differs for each model and region.
        model_description: for the user; "pixels" without a model.
    """

    def __init__(self, model: ClientModel | None = None, region: Region | None = None) -> None:
        self._model = model
        self.preparation = PIXELS if model is None else model.manifest.preparation(region)
        self.class_names = () if model is None else model.manifest.class_names
        graph = "pixels" if model is None else model.manifest.sha256[model.manifest.file]
        self.identity = hashlib.sha256(f"{graph} {self.preparation}".encode()).hexdigest()[:16]
        self.model_description = "pixels"
        if model is not None:
            known = model.manifest
            self.model_description = (
                f"{known.network} up to {known.stage}, round {known.round} of run {known.run}"
            )

    def __call__(self, images: Pixels) -> tuple[Array, Array]:
        """uint8 (N, C, H, W) -> features (N, D) and logits (N, classes), which are (N, 0) without a model."""
        if self._model is None:
            cells = images.reshape(len(images), 3, CELLS, -1, CELLS, images.shape[3] // CELLS)
            pooled = cells.mean((3, 5), dtype=np.float32).reshape(len(images), -1)
            return pooled / 255, np.zeros((len(images), 0), np.float32)
        features, logits = self._model(images)
        return pool(features), logits


def open_extractor(model: Path | None, region: Region | None, threads: int | None) -> Extractor:
    """`model`: a model's directory, or a device's state or models; None: there is none.

    Raises:
        ModelError: it is missing or damaged.
    """
    if model is None:
        return Extractor(region=region)
    folder = find_model(model)
    return Extractor(ClientModel(folder, threads=threads), region or load_region(folder))


def in_service(model: Path) -> tuple[str, int]:
    """A value that changes when another model is put into service. Raises ModelError: there is none."""
    manifest = (find_model(model) / MANIFEST).resolve()
    try:
        return str(manifest), os.stat(manifest).st_mtime_ns  # noqa: PTH116
    except OSError:  # it is being replaced
        return str(manifest), 0


def pool(features: Array) -> Array:
    """The input of an exit: means over halves of each axis except the channels. (N, ...) -> (N, D).

    The channels are the first axis of maps (C, H, W), the last of token sequences (T, C).
    """
    channels = 2 if features.ndim == 3 else 1
    cells = [features]
    for axis in range(1, features.ndim):
        if axis != channels:
            cells = [half for cell in cells for half in np.array_split(cell, min(2, cell.shape[axis]), axis)]
    axes = tuple(axis for axis in range(1, features.ndim) if axis != channels)
    means = [cell.mean(axes, dtype=np.float32) if axes else cell for cell in cells]
    return np.concatenate(means, axis=1)


def predictions(logits: Array) -> tuple[Array, Array]:
    """Probabilities (N, K) and normalised entropies (N,) of logits (N, K) with K >= 2."""
    return softmax(logits), normalized_entropy(logits)
