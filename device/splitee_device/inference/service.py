# SPDX-License-Identifier: Apache-2.0
"""The device as an inference service: images come, predictions are published, models are switched."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from splitee.cli.accuracy_words import threshold_in_words
from splitee.errors import DataError
from splitee.inference.offload import Offload
from splitee.inference.predictor import NO_FLOORS, OffloadFloors, Prediction, Predictor
from splitee.inference.signatures import ReleaseKey
from splitee.log_limits import FirstFew
from splitee.mqtt.events import Connected, Message
from splitee.mqtt.link import Link
from splitee.mqtt.options import LinkOptions
from splitee.mqtt.rate_limiter import RateLimiter
from splitee.protocol.inference import PredictionReport
from splitee.protocol.topics import Topics
from splitee.samples.fitting import Preparation, Region
from splitee.samples.images import load_image
from splitee_device.inference.camera import capture_image
from splitee_device.inference.delivery import Delivery
from splitee_device.inference.installer import Installer
from splitee_device.inference.model_installer import ModelInstaller
from splitee_device.inference.model_store import ModelStore
from splitee_device.inference.recent import RecentPredictions
from splitee_device.inference.tally import Tally
from splitee_device.inference.unsure_images import UnsureImages

LOG_EVERY = 2.0  # seconds between two predictions in the log
TICK = 0.2  # seconds between two looks at the folder, the clock and the model in service

log = logging.getLogger(__name__)


class ImageSource(Protocol):
    def new(self) -> list[tuple[str, Path | bytes]]:
        """What has come since the last call: each image's name, and its file or encoded bytes."""


class Camera:
    """An image every so many seconds."""

    def __init__(self, every: float) -> None:
        self._every = every
        self._due = time.monotonic()

    def new(self) -> list[tuple[str, Path | bytes]]:
        if time.monotonic() < self._due:
            return []
        self._due = time.monotonic() + self._every
        return [("camera", capture_image())]


class InferenceService:
    """Predicts with the model in service, publishes, and takes releases; all on the caller's thread.

    Attributes:
        tally: of the predictions so far.
    """

    def __init__(
        self,
        link: Link,
        options: LinkOptions,
        topics: Topics,
        device: str,
        shelf: ModelStore,
        *,
        instance: int,
        threshold: float | None = None,
        timeout: float = 2.0,
        floors: OffloadFloors = NO_FLOORS,
        key: ReleaseKey | None = None,
        region: Region | None = None,
        threads: int | None = None,
        unsure: UnsureImages | None = None,
        others: Sequence[Installer] = (),
    ) -> None:
        """`link`: for predictions and deliveries; what is offloaded has a link of its own, by `options`.

        The link's meter, where it has one, counts both.

        Args:
            instance: of this process; one that started later has a greater one.
            key: that releases must be signed by; None: by none.
            region: of the images that the model sees; None: all of them.
            unsure: where the images that it is uncertain of are kept; None: nowhere.
            others: that releases of other kinds go to.
        """
        self._link = link
        self._options = options
        self._topic = topics.device(device, "predictions")
        self._device = device
        self._shelf = shelf
        self._threshold = threshold
        self._timeout = timeout
        self._threads = threads
        self._floors = floors
        self._delivery = Delivery(link, topics, device, ModelInstaller(shelf, device), key=key)
        self._deliveries = (
            self._delivery,
            *(Delivery(link, topics, device, other, key=key) for other in others),
        )
        self._release: str | None = None
        self._offload: Offload | None = None
        self._predictor: Predictor | None = None
        self._region = region
        self._unsure = unsure
        self._preparation = Preparation((3, 1, 1))  # the model's, once there is one
        self.tally = Tally()
        self._recent = RecentPredictions(link, topics, device, instance)
        self._log_due = RateLimiter(LOG_EVERY)
        self._log_failed = RateLimiter()
        self._log_skips = FirstFew()
        self._unlogged = 0

    def run(self, images: ImageSource, stop: Callable[[], bool]) -> None:
        """Serves until `stop`. Without a model it waits for one to be released."""
        if self._shelf.release is None:
            log.info("no model yet: waiting for one to be released to %s", self._device)
        while not stop():
            event = self._link.receive(TICK)
            for delivery in self._deliveries:
                if isinstance(event, Message):
                    delivery.handle(event)
                elif isinstance(event, Connected):
                    delivery.say_again()
                delivery.tick()
            if isinstance(event, Connected):
                self._recent.tell_again()
            if self._unsure is not None:
                self._unsure.tick()
            self._recent.tell()
            if self._shelf.release != self._release:
                self._switch()
            if self._predictor is not None and not isinstance(event, Message):
                self._classify(images, self._predictor)

    def close(self) -> None:
        if self._offload is not None:
            self._offload.close()

    def _switch(self) -> None:
        """Loads what is in service now: delivered, rolled back by hand, or put back as it did not load."""
        wanted = self._shelf.release
        model = self._shelf.load(self._threads)
        self._release = self._shelf.release
        if wanted is not None and self._release != wanted:
            self._delivery.report(wanted, "rolled back", "it does not load")
        elif wanted is not None:
            self._delivery.report(wanted, "in service")
        self.close()
        self._offload = Offload(
            self._options, model.manifest, device=self._device, timeout=self._timeout, meter=self._link.meter
        )
        self._offload.open()
        self._predictor = Predictor(
            model, threshold=self._threshold, trunk=self._offload, floors=self._floors
        )
        self._preparation = model.manifest.preparation(self._region)
        in_force, released = self._predictor.threshold, model.manifest.released
        words = threshold_in_words(released)
        if in_force != released.threshold:
            words = f"threshold {in_force:.3f}, by this device's settings"
        log.info("in service: round %d of run %s; %s", model.manifest.round, model.manifest.run, words)

    def _classify(self, images: ImageSource, predictor: Predictor) -> None:
        try:
            new = images.new()
        except DataError as error:
            if self._log_failed.due():
                log.warning("%s", error)
            return
        for name, source in new:
            try:
                pixels = load_image(source, self._preparation, name=name)
            except DataError as error:
                if self._log_skips.due():  # a folder may fill with what is no image
                    log.warning("skipped: %s (%d so far)", error, self._log_skips.count)
                continue
            prediction = predictor(pixels)
            report = PredictionReport(picture=name[:1000], time=time.time(), **asdict(prediction))
            self._link.publish(self._topic, report.encode())
            self.tally.add(prediction)
            if self._unsure is not None:
                self._unsure.offer(name, source, pixels, prediction, predictor.threshold)
            self._recent.add(prediction)
            self._recent.tell()
            self._log(name, prediction)

    def _log(self, name: str, prediction: Prediction) -> None:
        """At most a line in LOG_EVERY seconds, with the number of images that had none."""
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
