# SPDX-License-Identifier: Apache-2.0
"""What a device publishes on its recent predictions: their rate, their latency, and the last labels."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from statistics import median

from msgspec.structs import replace

from splitee.clock import Clock
from splitee.inference.predictor import Prediction, Source
from splitee.mqtt.link import Link
from splitee.mqtt.options import LinkOptions
from splitee.mqtt.port import Port
from splitee.protocol import routes
from splitee.protocol.fields import LONGEST_CLASS_NAME
from splitee.protocol.inference import MOST_LAST, LastPrediction, Serving
from splitee.protocol.topics import Topics

REPORT_EVERY = 5.0  # seconds, if something has changed
AT_LEAST_EVERY = 60.0  # seconds, if nothing has changed
MINUTE = 60.0
WINDOW = 2 * MINUTE  # seconds that the figures cover
INBOX = 32 << 20  # bytes that may wait: one part of a model, but perhaps a flood of triggers
KEPT = 1000  # predictions; a device with more in a WINDOW reports on the last ones


def offline(topics: Topics, device: str, instance: int) -> tuple[str, bytes]:
    """The last will and the offline message of a process that predicts."""
    return routes.SERVING.topic(topics, device), Serving(state="offline", instance=instance).encode()


def serving_link(options: LinkOptions, device: str, instance: int) -> Link:
    """A link for predictions and deliveries. A device may have another one, for training, meanwhile."""
    topics = Topics(options.fleet)
    return Link(
        options.address,
        f"splitee-{options.fleet}-{device}-service",
        tls=options.tls,
        will=offline(topics, device, instance),
        capacity_bytes=INBOX,
    )


@dataclass(frozen=True)
class _Record:
    at: float  # by the clock
    milliseconds: float
    source: Source


class RecentPredictions:
    """The predictions of the last WINDOW, and the last few labels; never an image, nor its file's name.

    Attributes:
        dropped: images so far that came and were not predicted.
    """

    def __init__(
        self, port: Port, topics: Topics, device: str, instance: int, *, clock: Clock = time.monotonic
    ) -> None:
        """`instance`: of this process; a process that started later has a greater one."""
        self._port = port
        self._topic = routes.SERVING.topic(topics, device)
        self._instance = instance
        self._clock = clock
        self._started = clock()
        self._records: deque[_Record] = deque(maxlen=KEPT)
        self._last: deque[LastPrediction] = deque(maxlen=MOST_LAST)
        self._published: Serving | None = None
        self._published_at = 0.0
        self.dropped = 0

    def add(self, prediction: Prediction) -> None:
        """Adds a prediction that has just been made."""
        self._records.append(_Record(self._clock(), prediction.milliseconds, prediction.source))
        label = prediction.label[:LONGEST_CLASS_NAME]
        self._last.appendleft(LastPrediction(label, prediction.probability, prediction.source, time.time()))

    def publish_if_due(self) -> None:
        """Publishes the figures when they have changed, at most every REPORT_EVERY seconds."""
        since = self._clock() - self._published_at
        if self._published is not None and since < REPORT_EVERY:
            return
        serving = self._serving()
        if (
            self._published is None
            or since >= AT_LEAST_EVERY
            or replace(serving, time=self._published.time) != self._published
        ):
            self._port.publish(self._topic, serving.encode(), retain=True)
            self._published, self._published_at = serving, self._clock()

    def republish(self) -> None:
        """Publishes again soon: the broker may have published the last will of a broken connection."""
        self._published = None

    def _serving(self) -> Serving:
        now = self._clock()
        while self._records and now - self._records[0].at > WINDOW:
            self._records.popleft()
        of_source = [record.source for record in self._records]
        count = len(of_source)
        return Serving(
            state="online",
            instance=self._instance,
            time=time.time(),
            per_minute=round(MINUTE * count / self._seconds(now), 1),
            latency=round(median(record.milliseconds for record in self._records), 1) if count else None,
            offloaded_share=round(1 - of_source.count("exit") / count, 4) if count else None,
            fallback_share=round(of_source.count("local-fallback") / count, 4) if count else None,
            last=tuple(self._last),
            dropped=self.dropped,
        )

    def _seconds(self, now: float) -> float:
        """The seconds in which the kept predictions were made; at least a minute for a new process."""
        if len(self._records) == KEPT:
            return max(now - self._records[0].at, 1.0)
        return min(max(now - self._started, MINUTE), WINDOW)
