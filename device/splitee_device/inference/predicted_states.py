# SPDX-License-Identifier: Apache-2.0
"""Publishes the state that a device's predictions agree on; the broker retains it."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

from splitee.clock import Clock
from splitee.durable import write_atomically
from splitee.errors import MalformedMessage, StateError
from splitee.log_limits import FirstFew
from splitee.mqtt.port import Port
from splitee.protocol import routes
from splitee.protocol.fields import LONGEST_CLASS_NAME
from splitee.protocol.inference import PredictedState, PredictionReport
from splitee.protocol.topics import Topics
from splitee_device.inference.agreement import UNSURE, WEIGHTED, Agreement, State, parse_rule

FILE = "state.json"  # in the folder of models: the current state, for the next process
LARGEST_FILE = 1 << 16  # bytes
REFRESH = 60.0  # seconds after which an unchanged state is published again, with its latest confidence
SAVE_EVERY = 10.0  # least seconds between two writes of FILE, to spare an SD card

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AgreementCriteria:
    """When predictions agree.

    Attributes:
        rule: as `parse_rule` accepts it.
        unsure_above: normalised entropy above which an exit's prediction counts as UNSURE; None: never.
    """

    rule: str = WEIGHTED
    unsure_above: float | None = None

    def label(self, report: PredictionReport) -> str:
        """The class that an image counts for, or UNSURE. The trunk's predictions are never uncertain."""
        is_own = report.source != "trunk"
        if self.unsure_above is not None and is_own and report.entropy > self.unsure_above:
            return UNSURE
        if not math.isfinite(report.probability):  # then the model's logits are not finite either
            return UNSURE
        return report.label[:LONGEST_CLASS_NAME]


WEIGHTED_VOTES = AgreementCriteria()


class PredictedStates:
    """Publishes the state when it changes, after each connection, and every REFRESH seconds while images
    come.

    The state is written to disk before it is published, so that the next process continues with it. If it
    changes twice within SAVE_EVERY seconds, the second change is written a little later. Failed writes are
    logged.
    """

    def __init__(
        self,
        port: Port,
        topics: Topics,
        device: str,
        folder: Path,
        criteria: AgreementCriteria,
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        """`folder`: exists, and belongs to this device alone."""
        self._port = port
        self._topic = routes.PREDICTED_STATE.topic(topics, device)
        self._file = folder / FILE
        self._criteria = criteria
        self._make_rule = parse_rule(criteria.rule)
        self._clock = clock
        self._agreement = self._begin(1, _read(self._file))
        self._published_at = clock()
        self._has_update = False  # an image has come since the last publication
        self._saved: State | None = self._agreement.state
        self._saved_at = clock() - SAVE_EVERY
        self._log_failed = FirstFew()

    def serve(self, classes: int) -> None:
        """A model with so many classes is in service: earlier images do not count for its predictions."""
        self._agreement = self._begin(classes, self._agreement.state)

    def _begin(self, classes: int, state: State | None) -> Agreement:
        return Agreement(self._make_rule(classes, None if state is None else state.label), state)

    def take(self, report: PredictionReport) -> None:
        """Takes the prediction for the next image."""
        label = self._criteria.label(report)
        probability = 1.0 if label == UNSURE else report.probability
        self._has_update = True
        if not self._agreement.take(label, probability, report.time):
            return
        state = self._agreement.state
        assert state is not None
        self._save_if_due()
        self._publish()
        log.info("state: %s", state.label or "unsure")

    def tick(self) -> None:
        """Publishes and writes what is due."""
        if self._has_update and self._clock() - self._published_at >= REFRESH:
            self._publish()
        self._save_if_due()

    def republish(self) -> None:
        """After a new connection: the broker may have lost what it retained."""
        self._publish()

    def close(self) -> None:
        self._save()

    def _publish(self) -> None:
        if self._agreement.state is not None:
            self._port.publish(self._topic, _message(self._agreement.state).encode(), retain=True)
            self._published_at, self._has_update = self._clock(), False

    def _save_if_due(self) -> None:
        if self._clock() - self._saved_at >= SAVE_EVERY:
            self._save()

    def _save(self) -> None:
        """Writes the state, if its label or beginning differs from what is on disk."""
        state = self._agreement.state
        if state is None or (self._saved is not None and _same(state, self._saved)):
            return
        self._saved_at = self._clock()
        try:
            write_atomically(self._file, _message(state).encode())
            self._saved = state
        except StateError as error:
            if self._log_failed.due():
                log.warning("the state is not kept over a restart: %s", error)


def _same(one: State, other: State) -> bool:
    return (one.label, one.since) == (other.label, other.since)


def _message(state: State) -> PredictedState:
    return PredictedState(
        label=state.label or "unsure",
        confidence=round(state.confidence, 4),
        since=state.since,
        time=time.time(),
        unsure=state.label == UNSURE,
    )


def _read(file: Path) -> State | None:
    """The state of an earlier process; None: there is none, or it cannot be read, which is logged."""
    try:
        with file.open("rb") as opened:
            kept = PredictedState.decode(opened.read(LARGEST_FILE))
    except FileNotFoundError:
        return None
    except (OSError, MalformedMessage) as error:
        log.warning("%s cannot be read, and the state begins anew: %s", file, error)
        return None
    return State(UNSURE if kept.unsure else kept.label, kept.confidence, kept.since)
