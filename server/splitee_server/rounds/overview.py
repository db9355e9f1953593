# SPDX-License-Identifier: Apache-2.0
"""The overview of a run for viewers, computed once per round or with the server's heartbeat."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from statistics import median

from splitee.clock import Clock
from splitee.protocol import routes
from splitee.protocol.accuracies import MOST_CONFUSED, MOST_CONFUSED_BY_DEVICE, ConfusionMatrix
from splitee.protocol.fleet import Metrics
from splitee.protocol.overview import (
    MOST_CURVES,
    FleetConfusion,
    NetworkStage,
    NetworkStages,
    Timing,
)
from splitee_server.announcer import Announcer
from splitee_server.learning.fleet_model import FleetModel
from splitee_server.rounds.best_round import BestRound
from splitee_server.rounds.checkpoints import Checkpoints
from splitee_server.rounds.class_report import ClassReport, confusion_matrix
from splitee_server.rounds.curves import DeviceCurves, fleet_history, round_took
from splitee_server.rounds.phase import Phase
from splitee_server.rounds.waiting import WaitingSince

REMEMBERED = 20  # rounds, of whose seconds the next ones are estimated


class Overview:
    """One run for its viewers."""

    def __init__(
        self,
        run: str,
        rounds: int,
        model: FleetModel,
        announcer: Announcer,
        checkpoints: Checkpoints,
        best: BestRound,
        clock: Clock,
    ) -> None:
        """`rounds`: of the run."""
        self._run = run
        self._rounds = rounds
        self._model = model
        self._announce = announcer
        self._checkpoints = checkpoints
        self._best = best
        self._clock = clock
        self._epoch = time.time() - clock()
        self._waiting = WaitingSince(self._now)
        self._curves = DeviceCurves()
        self._took: list[float] = []  # seconds of the last rounds
        self._last: float = rounds  # the round after which the run probably ends
        self._confusions: dict[str, ConfusionMatrix] = {}  # by device, of the last evaluated round
        self._fleet_confusion: ConfusionMatrix | None = None
        self._opened = self._begun = self._now()  # the phase; the round under way

    # What is known of the rounds

    def resume(self, metrics: Metrics | None, dismissed: Collection[str]) -> None:
        """Publish the results of the run's earlier processes. `metrics`: of the committed round."""
        self._publish_network()
        if metrics is None:
            return
        if len(metrics.devices) <= MOST_CURVES:
            self._curves = DeviceCurves(self._checkpoints.history())
        report = self._checkpoints.evaluation()
        if report is not None and (report.run, report.round) == (metrics.run, metrics.round):
            self._note_confusions(report)
        self.publish_results(metrics, dismissed)

    def evaluated(self, metrics: Metrics, report: ClassReport, dismissed: Collection[str]) -> None:
        """Publish the results of a round; it is in the history already."""
        self._curves.add(metrics)
        self._note_confusions(report)
        self.publish_results(metrics, dismissed)

    def publish_results(self, metrics: Metrics, dismissed: Collection[str]) -> None:
        """Publish the metrics of the last evaluated round and the curves up to it."""
        rounds = self._checkpoints.fleet_history(metrics.round)
        pairs = zip([None, *rounds], rounds, strict=False)
        took = (round_took(each, before) for before, each in list(pairs)[-REMEMBERED:])
        self._took = [seconds for seconds in took if seconds is not None]
        self._last = min(self._rounds, metrics.round + self._best.rounds_left(metrics.round))
        self._announce.metrics(metrics, dismissed, self._confusions)
        self._announce.overview(routes.HISTORY, fleet_history(self._run, rounds, metrics))
        confusion = FleetConfusion(run=self._run, round=metrics.round, confusion=self._fleet_confusion)
        self._announce.overview(routes.CONFUSION, confusion)
        for device, curve in self._curves.of(self._run, metrics.devices.keys() - dismissed):
            self._announce.overview(routes.DEVICE_HISTORY, curve, device)

    # What is under way

    def opened(self, phase: Phase) -> None:
        """A phase is opened."""
        self._epoch = time.time() - self._clock()  # a small machine's time is set after its start
        self._opened = self._now()
        if phase.kind in ("gather", "train"):
            self._begun = self._opened

    def note_waiting(self, phase: Phase, waiting_for: Iterable[str]) -> None:
        """Note the devices that are waited for now."""
        self._waiting.note(phase, waiting_for)

    def heartbeat(self, phase: Phase) -> None:
        """Publish the times of the phase if they have changed."""
        opened = phase.opened
        timing = Timing(
            run=opened.run,
            round=opened.round,
            attempt=opened.attempt,
            phase=opened.phase,
            opened=round(self._opened, 1),
            waiting=self._waiting.longest(),
            estimate=self.estimate(phase),
        )
        self._announce.overview(routes.TIMING, timing)

    def estimate(self, phase: Phase) -> float | None:
        """The estimated time at which the last round is evaluated, by the median of the latest rounds.

        With `--stop-after` it assumes that no later round is better. In seconds since the epoch; None: no
        round has ended, or all have.
        """
        if not self._took or phase.kind in ("release", "finished"):
            return None
        took, now = median(self._took), self._now()
        this_one = now if phase.kind == "gather" else max(self._begun + took, now)
        return float(round(this_one + (self._last - phase.opened.round) * took))

    def _now(self) -> float:
        """Seconds since the epoch."""
        return self._epoch + self._clock()

    def _publish_network(self) -> None:
        stages = tuple(
            NetworkStage(stage.name[:1000], stage.feature_shape, stage.parameters)
            for stage in self._model.network.stages
        )
        self._announce.overview(routes.NETWORK, NetworkStages(run=self._run, stages=stages))

    def _note_confusions(self, report: ClassReport) -> None:
        self._fleet_confusion = confusion_matrix(report.fleet, MOST_CONFUSED)
        found = (
            (device, confusion_matrix(evaluated, MOST_CONFUSED_BY_DEVICE))
            for device, evaluated in report.devices.items()
        )
        self._confusions = {device: matrix for device, matrix in found if matrix is not None}
