"""Adaptive inference: the exit answers where it is sure, the trunk where it is not."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal, Protocol

from splitee.inference.graphs import ClientModel
from splitee.inference.uncertainty import Array, softmax
from splitee.samples.images import Pixels

Source = Literal["exit", "trunk", "local-fallback"]


@dataclass(frozen=True)
class Prediction:
    """One picture's answer; `entropy` is the exit's doubt by the model's measure, whoever answered."""

    label: str
    probability: float
    entropy: float
    source: Source
    milliseconds: float  # from the decoded picture to the answer


class Trunk(Protocol):
    """Whoever may have the trunk's answer."""

    def logits(self, features: Array, waited: float = 0.0) -> Array | None:
        """(1, *feature_shape) -> (1, classes); None when there is no answer in time.

        `waited`: seconds that the picture has waited so far.
        """


class Predictor:
    """A device's model, and the trunk that continues it where there is one."""

    def __init__(
        self, model: ClientModel, *, threshold: float | None = None, trunk: Trunk | None = None
    ) -> None:
        """`threshold`: doubt at or below which the exit's answer is taken; default: the manifest's."""
        self._model = model
        self._threshold = model.manifest.threshold if threshold is None else threshold
        self._trunk = trunk

    @property
    def class_names(self) -> tuple[str, ...]:
        """The labels that there are, in the order of the model's classes."""
        return self._model.manifest.class_names

    def __call__(self, pixels: Pixels) -> Prediction:
        """`pixels`: uint8 (C, H, W), as `load_picture` gives them."""
        started = time.perf_counter()
        features, logits = self._model(pixels[None])
        doubt = float(self._model.doubt(logits)[0])
        source: Source = "exit"
        if doubt > self._threshold and self._trunk is not None:
            answer = self._trunk.logits(features, time.perf_counter() - started)
            logits, source = (logits, "local-fallback") if answer is None else (answer, "trunk")
        probabilities = softmax(logits)[0]
        best = int(probabilities.argmax())
        return Prediction(
            label=self._model.manifest.class_names[best],
            probability=float(probabilities[best]),
            entropy=doubt,
            source=source,
            milliseconds=1000 * (time.perf_counter() - started),
        )
