# SPDX-License-Identifier: Apache-2.0
"""Adaptive inference: the exit predicts if it is certain; otherwise exit and trunk predict together."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from splitee.inference.graphs import ClientModel
from splitee.inference.uncertainty import Array, softmax
from splitee.samples.fitting import Pixels

Source = Literal["exit", "trunk", "local-fallback"]
WINDOW = 100  # images in a row, of which only a share may be offloaded


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image; `entropy` is the exit's uncertainty by the model's measure."""

    label: str
    probability: float
    entropy: float
    source: Source
    milliseconds: float  # from the decoded image to the prediction


class Trunk(Protocol):
    """Access to the trunk's predictions."""

    def logits(self, features: Array, waited: float = 0.0) -> Array | None:
        """(B, *feature_shape) -> (B, classes); None when there is no response in time.

        `waited`: seconds that the images have waited so far.
        """


@dataclass(frozen=True)
class OffloadLimits:
    """The device owner's limits on offloading, which override a model's manifest.

    Attributes:
        lowest_threshold: uncertainty up to which the exit's prediction is always taken.
        most_offload: largest share of any WINDOW images in a row that may be offloaded.
    """

    lowest_threshold: float = 0.0
    most_offload: float = 1.0


NO_LIMITS = OffloadLimits()


class Predictor:
    """A device's model, and the trunk that continues it, if there is one.

    Attributes:
        threshold: uncertainty up to which the exit's prediction is taken.
    """

    def __init__(
        self,
        model: ClientModel,
        *,
        threshold: float | None = None,
        trunk: Trunk | None = None,
        offload_limits: OffloadLimits = NO_LIMITS,
    ) -> None:
        """`threshold`: uncertainty up to which the exit's prediction is taken; default: the manifest's."""
        self._model = model
        threshold = model.manifest.threshold if threshold is None else threshold
        self.threshold = max(threshold, offload_limits.lowest_threshold)
        self._trunk = trunk
        self._most_offloaded = round(offload_limits.most_offload * WINDOW)
        self._recent: deque[bool] = deque(maxlen=WINDOW - 1)  # whether the previous images were offloaded

    @property
    def class_names(self) -> tuple[str, ...]:
        """The labels, in the order of the model's classes."""
        return self._model.manifest.class_names

    def __call__(self, pixels: Pixels) -> Prediction:
        """`pixels`: uint8 (C, H, W), as `load_image` gives them."""
        return self.batch(pixels[None])[0]

    def batch(self, pixels: Pixels) -> list[Prediction]:
        """Predict images uint8 (B, C, H, W) in one pass, with at most one request to the trunk.

        Each prediction has the time of the whole batch.
        """
        started = time.perf_counter()
        features, logits = self._model(pixels)
        uncertainties = self._model.uncertainty(logits)
        offloaded = np.array([self._is_offloaded(float(uncertainty)) for uncertainty in uncertainties])
        trunk_logits = None
        if self._trunk is not None and offloaded.any():
            trunk_logits = self._trunk.logits(features[offloaded], time.perf_counter() - started)
        if trunk_logits is not None:
            logits = logits.copy()
            logits[offloaded] = self._model.manifest.combination(logits[offloaded], trunk_logits)
        milliseconds = 1000 * (time.perf_counter() - started)
        return [
            Prediction(
                label=self.class_names[row.argmax()],
                probability=float(row.max()),
                entropy=float(uncertainty),
                source=self._source(float(uncertainty), bool(is_offloaded) and trunk_logits is not None),
                milliseconds=milliseconds,
            )
            for row, uncertainty, is_offloaded in zip(softmax(logits), uncertainties, offloaded, strict=True)
        ]

    def _source(self, uncertainty: float, is_from_trunk: bool) -> Source:
        if is_from_trunk:
            return "trunk"
        return "exit" if self._trunk is None or uncertainty <= self.threshold else "local-fallback"

    def _is_offloaded(self, uncertainty: float) -> bool:
        """Whether the trunk is to predict the next image: of each WINDOW, at most a share."""
        is_offloaded = (
            self._trunk is not None
            and uncertainty > self.threshold
            and sum(self._recent) < self._most_offloaded
        )
        self._recent.append(is_offloaded)
        return is_offloaded
