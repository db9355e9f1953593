# SPDX-License-Identifier: Apache-2.0
"""The device as an inference service: it takes images, publishes predictions, and switches models."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np

from splitee.cli.accuracy_words import describe_threshold
from splitee.cli.plain_text import plain
from splitee.errors import DataError, ModelError
from splitee.inference.graphs import ClientModel
from splitee.inference.offload import Offload
from splitee.inference.predictor import NO_LIMITS, OffloadLimits, Prediction, Predictor
from splitee.inference.signatures import ReleaseKey
from splitee.log_limits import FirstFew
from splitee.mqtt.events import Connected, Event, Message, Overflow
from splitee.mqtt.link import Link
from splitee.mqtt.options import LinkOptions
from splitee.mqtt.rate_limiter import RateLimiter
from splitee.protocol.inference import PredictionReport
from splitee.protocol.topics import Topics
from splitee.samples.fitting import Pixels, Preparation, Region
from splitee.samples.images import load_image
from splitee_device.capture.backlog import NewImage
from splitee_device.capture.options import Capture
from splitee_device.inference.delivery import Delivery
from splitee_device.inference.installer import Installer
from splitee_device.inference.latest_image import LatestImage
from splitee_device.inference.model_installer import ModelInstaller
from splitee_device.inference.model_store import ModelStore
from splitee_device.inference.predicted_states import WEIGHTED_VOTES, AgreementCriteria, PredictedStates
from splitee_device.inference.recent import RecentPredictions
from splitee_device.inference.tally import Tally
from splitee_device.inference.unsure_images import UnsureImages

LOG_EVERY = 2.0  # seconds between two predictions in the log
TICK = 0.2  # seconds between two checks of the clock and the model in service
RESUBSCRIBE_EVERY = 10.0  # seconds between two requests for messages that were lost in a flood of triggers
EVENTS = 64  # handled between two passes, so that a flood of messages does not stop the predictions
LARGEST_BATCH = 8  # images in a pass
LONGEST_PASS = 0.5  # seconds; after half of it or less, the next pass may have twice as many images

log = logging.getLogger(__name__)


class InferenceService:
    """Predicts with the model in service, publishes, and accepts releases; all on the caller's thread.

    Attributes:
        tally: of the predictions so far.
    """

    def __init__(
        self,
        link: Link,
        options: LinkOptions,
        topics: Topics,
        device: str,
        store: ModelStore,
        *,
        instance: int,
        threshold: float | None = None,
        timeout: float = 2.0,
        offload_limits: OffloadLimits = NO_LIMITS,
        key: ReleaseKey | None = None,
        region: Region | None = None,
        threads: int | None = None,
        unsure: UnsureImages | None = None,
        criteria: AgreementCriteria = WEIGHTED_VOTES,
        latest: LatestImage | None = None,
        others: Sequence[Installer] = (),
    ) -> None:
        """`link`: for predictions and deliveries; offloading uses another link, made with `options`.

        The meter of `link`, if it has one, counts both.

        Args:
            instance: of this process; a process that started later has a greater one.
            key: that must have signed releases; None: signatures are not checked.
            region: the part of images that the model sees; None: all of them.
            unsure: where images that the model is uncertain of are kept; None: nowhere.
            criteria: when predictions agree, so that the state changes.
            latest: where the latest image is kept; None: nowhere.
            others: installers for releases of other kinds.
        """
        self._link = link
        self._options = options
        self._topic = topics.device(device, "predictions")
        self._device = device
        self._store = store
        self._threshold = threshold
        self._timeout = timeout
        self._threads = threads
        self._offload_limits = offload_limits
        self._delivery = Delivery(link, topics, device, ModelInstaller(store, device), key=key)
        self._deliveries = (
            self._delivery,
            *(Delivery(link, topics, device, other, key=key) for other in others),
        )
        self._release: str | None = None
        self._offload: Offload | None = None
        self._predictor: Predictor | None = None
        self._region = region
        self._unsure = unsure
        self._latest = latest
        self._states = PredictedStates(link, topics, device, store.path, criteria)
        self._preparation = Preparation((3, 1, 1))  # the model's, once there is a model
        self.tally = Tally()
        self._recent = RecentPredictions(link, topics, device, instance)
        self._log_due = RateLimiter(LOG_EVERY)
        self._log_skips = FirstFew()
        self._log_dropped = RateLimiter()
        self._has_lost_messages = False  # lost messages may have been offers
        self._resubscribe = RateLimiter(RESUBSCRIBE_EVERY)
        self._batch_size = 1  # images in a pass; more once passes are known to be short
        self._unlogged = 0

    def run(self, capture: Capture | None, stop: Callable[[], bool]) -> None:
        """Serves until `stop`, or until the images end. Without a model it waits for a release.

        `capture`: None: there are no images; only models are received.
        """
        if self._store.release is None:
            log.info("no model yet: waiting for one to be released to %s", self._device)
        if capture is not None:
            capture.images.open(self._link.wake)
            if capture.trigger is not None:
                self._link.subscribe(capture.trigger.topic)
        try:
            while not stop() and (capture is None or not capture.images.ended):
                self._serve_once(capture)
        finally:
            if capture is not None:
                capture.images.close()

    def _serve_once(self, capture: Capture | None) -> None:
        """Handles what has come, and classifies a batch if images wait; otherwise waits for a TICK."""
        is_busy = capture is not None and self._predictor is not None and capture.images.waiting
        wait = 0.0 if is_busy else TICK
        for _ in range(EVENTS):
            event = self._link.receive(wait)
            if event is None:
                break
            self._handle(event, capture)
            wait = 0.0
        if self._has_lost_messages and self._resubscribe.due():
            self._has_lost_messages = False
            for delivery in self._deliveries:
                delivery.resubscribe()
        for delivery in self._deliveries:
            delivery.tick()
        if self._unsure is not None:
            self._unsure.tick()
        if self._latest is not None:
            self._latest.tick()
        self._states.tick()
        self._recent.publish_if_due()
        if self._store.release != self._release:
            self._switch_model()
        if capture is not None:
            self._note_dropped(capture.images.dropped)
            if self._predictor is not None:
                self._classify(capture, self._predictor)

    def _handle(self, event: Event, capture: Capture | None) -> None:
        if isinstance(event, Message):
            if capture is None or capture.trigger is None or not capture.trigger.take(event):
                for delivery in self._deliveries:
                    delivery.handle(event)
        elif isinstance(event, Connected):
            for delivery in self._deliveries:
                delivery.republish()
            self._recent.republish()
            self._states.republish()
        elif isinstance(event, Overflow):
            self._has_lost_messages = True

    def close(self) -> None:
        self._states.close()
        self._close_offload()

    def _close_offload(self) -> None:
        if self._offload is not None:
            self._offload.close()

    def _switch_model(self) -> None:
        """Loads the model now in service: delivered, rolled back, or put back in place of a broken one."""
        wanted = self._store.release
        model = self._load_model()
        self._release = self._store.release
        if model is None:
            self._predictor = None
            self._delivery.refetch("its files on this device are damaged")
            return
        if wanted is not None and self._release != wanted:
            self._delivery.report(wanted, "rolled back", "it does not load")
        elif wanted is not None:
            self._delivery.report(wanted, "in service")
        self._close_offload()
        self._offload = Offload(
            self._options, model.manifest, device=self._device, timeout=self._timeout, meter=self._link.meter
        )
        self._offload.open()
        self._predictor = Predictor(
            model, threshold=self._threshold, trunk=self._offload, offload_limits=self._offload_limits
        )
        self._preparation = model.manifest.preparation(self._region)
        self._states.serve(len(model.manifest.class_names))
        in_force, released = self._predictor.threshold, model.manifest.released
        words = describe_threshold(released)
        if in_force != released.threshold:
            words = f"threshold {in_force:.3f}, by this device's settings"
        log.info("in service: round %d of run %s; %s", model.manifest.round, model.manifest.run, words)

    def _load_model(self) -> ClientModel | None:
        """None: the files are damaged, and no model is left in service; a delivery will repair that.

        Raises ModelError: the files are as delivered, and the model does not load all the same.
        """
        try:
            return self._store.load(self._threads)
        except ModelError as error:
            if self._store.release is not None:
                raise
            log.warning("%s; waiting for a release to %s", error, self._device)
            return None

    def _classify(self, capture: Capture, predictor: Predictor) -> None:
        """Classifies the images that have waited longest, in one pass: as many as keep it short."""
        taken = capture.images.take(self._batch_size)
        loaded = [(image, pixels) for image in taken if (pixels := self._load(image)) is not None]
        if capture.change is not None:
            loaded = [(image, pixels) for image, pixels in loaded if capture.change.passes(pixels)]
        if not loaded:
            return
        started = time.monotonic()
        predictions = predictor.batch(np.stack([pixels for _, pixels in loaded]))
        seconds = time.monotonic() - started
        for (image, pixels), prediction in zip(loaded, predictions, strict=True):
            self._publish(image.name, prediction)
            if self._latest is not None:
                self._latest.offer(image.source)
            if self._unsure is not None:
                self._unsure.offer(image.name, image.source, pixels, prediction, predictor.threshold)
        self._recent.publish_if_due()
        if seconds > LONGEST_PASS:
            self._batch_size = max(self._batch_size // 2, 1)
        elif seconds < LONGEST_PASS / 2:
            self._batch_size = min(2 * self._batch_size, LARGEST_BATCH)

    def _load(self, image: NewImage) -> Pixels | None:
        """None: it cannot be read, which is logged."""
        try:
            return load_image(image.source, self._preparation, name=image.name)
        except DataError as error:
            if self._log_skips.due():  # a folder may fill with files that are no images
                log.warning("skipped: %s (%d so far)", error, self._log_skips.count)
            return None

    def _publish(self, name: str, prediction: Prediction) -> None:
        """Passes a prediction on to all that need it. A file's name may not be valid text."""
        image = plain(name)[:1000]
        report = PredictionReport(image=image, picture=image, time=time.time(), **asdict(prediction))
        self._link.publish(self._topic, report.encode())
        self._states.take(report)
        self.tally.add(prediction)
        self._recent.add(prediction)
        self._log(name, prediction)

    def _note_dropped(self, dropped: int) -> None:
        """Without a model all images are dropped, which has been logged."""
        if dropped > self._recent.dropped and self._predictor is not None and self._log_dropped.due():
            log.warning("images come faster than they are classified: %d were dropped so far", dropped)
        self._recent.dropped = dropped

    def _log(self, name: str, prediction: Prediction) -> None:
        """Logs at most one line in LOG_EVERY seconds, with the number of images in between."""
        if not self._log_due.due():
            self._unlogged += 1
            return
        others = f"; {self._unlogged} others since the line before" if self._unlogged else ""
        self._unlogged = 0
        log.info(
            "%s: %s %.1f %%, %s%s",
            name,
            prediction.label,
            100 * prediction.probability,
            prediction.source,
            others,
        )
