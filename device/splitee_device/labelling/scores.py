# SPDX-License-Identifier: Apache-2.0
"""Features and predictions of the unlabelled images, in a thread that follows the folders."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from splitee.errors import SpliteeError
from splitee.inference.uncertainty import Array
from splitee.log_limits import FirstFew
from splitee.samples.fitting import Region
from splitee_device.labelling.choice import interleave, k_centre
from splitee_device.labelling.class_names import WORKSPACE
from splitee_device.labelling.extractor import in_service, open_extractor, predictions
from splitee_device.labelling.kept_features import BATCH, KeptFeatures
from splitee_device.labelling.labelled import features_of_labelled
from splitee_device.labelling.labeller import Labeller
from splitee_device.labelling.learning_curve import Enough, how_much_is_enough
from splitee_device.labelling.unlabelled import Unlabelled

SCAN_EVERY = 2.0  # seconds between two scans of the folders
SAVE_EVERY = 300.0  # seconds between two writes of new features
REPORT_EVERY = 1.0  # seconds between two reports of progress

Order = Literal["both", "uncertain", "unlike"]
Changed = Callable[[set[str]], None]
"""Called with the identifiers that have gone, or with none if something else has changed."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Score:
    """The score of one image; `guesses`: the most probable classes with probabilities, () without a model."""

    features: Array
    guesses: tuple[tuple[str, float], ...]
    entropy: float


class Scores:
    """Features and predictions by the identifiers of images; usable by several threads.

    Attributes:
        unreadable: images that cannot be decoded.
    """

    def __init__(self, model: Path | None, region: Region | None, threads: int | None) -> None:
        """Raises ModelError: there is no model at `model`, or it is damaged."""
        self._model, self._region, self._threads = model, region, threads
        self._lock = threading.Lock()
        self._labeller: Labeller | None = None
        self._scores: dict[str, Score] = {}
        self._stop = threading.Event()
        self._log_failed = FirstFew()
        self._in_service = in_service(model) if model is not None else None
        self._extractor = open_extractor(model, region, threads)
        self._unlike: list[str] = []
        self.unreadable: set[str] = set()

    def guess(self, identifier: str) -> tuple[str, float, float] | None:
        """The most probable class, its probability, and the entropy; None: there is none yet."""
        score = self._scores.get(identifier)
        return (*score.guesses[0], score.entropy) if score is not None and score.guesses else None

    def score(self, identifier: str) -> Score | None:
        return self._scores.get(identifier)

    @property
    def model_description(self) -> str:
        """The model, in words; "": there is none."""
        return self._extractor.model_description if self._extractor.class_names else ""

    def open(self, labeller: Labeller) -> None:
        self._labeller = labeller
        self._kept = KeptFeatures(labeller.data / WORKSPACE, self._extractor)

    def run(self, changed: Changed) -> None:
        """Until `close`: scans the folders, and scores new images."""
        saved = time.monotonic()
        while not self._stop.is_set():
            try:
                self._take_model()
                came, gone = self._opened().scan()
                self._forget(gone)
                if came or gone:
                    changed(gone)
                self._score(changed)
            except (SpliteeError, OSError) as error:  # a folder that may be back at the next scan
                if self._log_failed.due():
                    log.warning("%s", error)
            if time.monotonic() - saved > SAVE_EVERY:
                self._save()
                saved = time.monotonic()
            self._stop.wait(SCAN_EVERY)
        self._save()

    def close(self) -> None:
        self._stop.set()

    def enough(self) -> Enough:
        """Whether the labelled images are enough; takes seconds. Raises DataError."""
        with self._lock:
            found = features_of_labelled(self._opened().data, self._kept, self._stop.is_set)
        return how_much_is_enough(*found)

    def order(self, images: Sequence[Unlabelled], order: Order) -> list[str]:
        """Identifiers, those most worth labelling first. Images without a score come last, by name."""
        names = [image.identifier for image in images]
        # Read in this order, both are of one model, or there are no scores: another model may come meanwhile.
        kept, scores = self._kept, self._scores
        known = {name: score for name in names if (score := scores.get(name)) is not None}
        scored = list(known)
        uncertain = sorted(scored, key=lambda name: -known[name].entropy)
        if order == "uncertain" and kept.extractor.class_names:
            first = uncertain
        elif order == "unlike" or not kept.extractor.class_names:
            first = self._most_unlike(known, kept)
        else:
            first = interleave(uncertain, self._most_unlike(known, kept))
        return interleave(first) + [name for name in names if name not in known]

    def _most_unlike(self, known: dict[str, Score], kept: KeptFeatures) -> list[str]:
        """The most unlike first; the labelled images count as chosen already, if they can be read."""
        order = self._unlike
        if not known.keys() <= set(order):
            names = list(known)
            features = np.stack([score.features for score in known.values()]).astype(np.float32)
            with self._lock:
                own, _, _ = features_of_labelled(self._opened().data, kept, self._stop.is_set)
            order = [names[place] for place in k_centre(features, own)]
            with self._lock:
                if kept is self._kept:
                    self._unlike = order
        return [name for name in order if name in known]

    def _forget(self, gone: set[str]) -> None:
        for identifier in gone:
            self._scores.pop(identifier, None)
            self.unreadable.discard(identifier)

    def _opened(self) -> Labeller:
        assert self._labeller is not None
        return self._labeller

    def _take_model(self) -> None:
        """Switches to another model if one has been put into service."""
        if self._model is None or (now := in_service(self._model)) == self._in_service:
            return
        extractor = open_extractor(self._model, self._region, self._threads)
        self._save()
        with self._lock:
            self._in_service, self._extractor = now, extractor
            self._scores, self.unreadable = {}, set()
            self._kept = KeptFeatures(self._opened().data / WORKSPACE, extractor)
            self._unlike = []
        log.info("in service: %s", extractor.model_description)

    def _score(self, changed: Changed) -> None:
        images = {
            image.path: image.identifier
            for image in self._opened().images()
            if image.identifier not in self._scores and image.identifier not in self.unreadable
        }
        paths, reported = list(images), time.monotonic()
        for start in range(0, len(paths), BATCH):
            if self._stop.is_set():
                return
            with self._lock:
                rows = list(self._kept.of(paths[start : start + BATCH]))
            for path, row in rows:
                if row is None:
                    self.unreadable.add(images[path])
                else:
                    self._scores[images[path]] = self._scored(*row)
            if time.monotonic() - reported > REPORT_EVERY:
                changed(set())
                reported = time.monotonic()
        if paths:
            changed(set())

    def _scored(self, features: Array, logits: Array) -> Score:
        if not self._extractor.class_names:
            return Score(features, (), 0.0)
        probabilities, entropy = predictions(logits[None].astype(np.float32))
        best = np.argsort(-probabilities[0], kind="stable")[:3]
        names = self._extractor.class_names
        guesses = tuple((names[place], float(probabilities[0, place])) for place in best)
        return Score(features, guesses, float(entropy[0]))

    def _save(self) -> None:
        with self._lock:
            self._kept.save()
