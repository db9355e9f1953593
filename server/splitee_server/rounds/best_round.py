# SPDX-License-Identifier: Apache-2.0
"""Chooses the committed round to release, and whether a run ends before its last round."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from math import inf

from splitee.cli.accuracy_words import describe_accuracies
from splitee.protocol.fleet import Metrics
from splitee_server.rounds.checkpoints import Checkpoints, Committed
from splitee_server.rounds.evaluation import Score

log = logging.getLogger(__name__)


class BestRound:
    """The best of the evaluated rounds, as `splitee.training.history.course` chooses it."""

    def __init__(self, checkpoints: Checkpoints, stop_after: int) -> None:
        """`stop_after`: evaluated rounds without a better one, after which the run ends; 0: never."""
        self._checkpoints = checkpoints
        self._stop_after = stop_after
        self._scored = 0  # the best round that this process evaluated
        self._scores: Mapping[str, Score] = {}

    def note(self, metrics: Metrics, scores: Mapping[str, Score]) -> None:
        """Note a round that has been evaluated; its `metrics` are in the history."""
        best = self._checkpoints.course(metrics.round).best
        if best is not None and best.round == metrics.round:
            self._scored, self._scores = metrics.round, scores

    def metrics(self, committed: int) -> Metrics | None:
        """Metrics of the best of the rounds 1..`committed`; None: no image was held out."""
        best = self._checkpoints.course(committed).best
        return None if best is None else self._checkpoints.evaluated(best.round)

    def ends_run(self, committed: int) -> bool:
        """Whether the run ends after round `committed` because too many rounds did not improve."""
        return self.rounds_left(committed) <= 0

    def rounds_left(self, evaluated: int) -> float:
        """The largest number of rounds after round `evaluated`, if none of them is better."""
        if not self._stop_after:
            return inf
        return self._stop_after - self._checkpoints.course(evaluated).without_improvement

    def release(self, committed: int) -> tuple[Committed, Mapping[str, Score]]:
        """The commit to release, and its scores by device if this process evaluated it.

        From now on its trunks predict offloaded images. If no round was evaluated, or the file of the best
        one is lost, it is the last commit.
        """
        best = self.metrics(committed)
        chosen = self._checkpoints.load(committed if best is None else best.round)
        if best is not None and (chosen is None or chosen.round != best.round):
            log.warning("round %d was the best, and its file is lost: the last round is released", best.round)
            chosen = self._checkpoints.load(committed)
        assert chosen is not None
        if best is not None and chosen.round != committed:
            words = describe_accuracies(best.fleet, best.fleet.images)
            log.info("round %d of %d is the best, and is released: %s", best.round, committed, words)
        self._checkpoints.release(chosen.round)
        return chosen, self._scores if self._scored == chosen.round else {}
