# SPDX-License-Identifier: Apache-2.0
"""Trains, observes or evaluates trunks on the batches of the current phase, one batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from splitee.clock import Clock
from splitee.errors import MalformedMessage
from splitee.protocol.cut_batch import CutBatch
from splitee.protocol.fields import RunPhase
from splitee.protocol.rounds import Features
from splitee.protocol.run_spec import RunSpec
from splitee.training.tensors import tensor_of
from splitee_server.learning.fleet_model import FleetModel
from splitee_server.learning.strategies.base import Untrainable
from splitee_server.rounds.batch_order import OfferResult
from splitee_server.rounds.phase import Phase
from splitee_server.rounds.progress import Trained

AcceptResult = OfferResult | Literal["gap"]


class Worked(NamedTuple):
    """A batch of `device` was taken; `is_done`: it could be worked on.

    `unlocked`: another device, which now has a window.
    """

    device: str
    is_done: bool
    unlocked: str | None


class BatchWork:
    """Accepts batches and processes them in their order.

    Attributes:
        trained: what has been trained so far.
    """

    def __init__(
        self,
        spec: RunSpec,
        model: FleetModel,
        guard: Callable[[str, Callable[[], None]], bool],
        clock: Clock,
        trained: Trained | None = None,
    ) -> None:
        """`guard`: works on a device's batch; False: it raised an error, and the batch is rejected.

        `trained`: counts of what this process has trained before, which go on.
        """
        self._spec = spec
        self._model = model
        self._guard = guard
        self._clock = clock
        self.trained = Trained() if trained is None else trained
        self._work: Mapping[RunPhase, Callable[[Phase, str, int, CutBatch], None]] = {
            "train": self._train,
            "statistics": self._observe,
            "evaluate": self._evaluate,
        }

    def accept(self, phase: Phase, device: str, cut: int, message: Features) -> AcceptResult | None:
        """Accept a batch that has arrived; None: it belongs to another phase or attempt.

        A device's batches arrive in order: after a gap those in between are lost.

        Raises:
            MalformedMessage: it is not of this run, or does not fit the cut.
        """
        if message.run != self._spec.run:
            raise MalformedMessage(f"of run {message.run!r}, this is {self._spec.run!r}", "foreign")
        batch = CutBatch.of(message, self._spec, self._model.feature_shape(cut))
        if not phase.is_current(message.round, message.attempt, message.phase) or device not in phase:
            return None
        expected = phase.next_expected(device)
        offer = phase.offer(device, message.step, batch)
        return "gap" if offer == "taken" and message.step > expected else offer

    def work_one(self, phase: Phase) -> Worked | None:
        """Process the next batch; None: it has not arrived."""
        taken = phase.take()
        if taken is None:
            return None
        device, step, batch = taken
        unlocked = phase.windows.note_taken(device, step)
        work = self._work[phase.kind]
        is_done = self._guard(device, lambda: work(phase, device, step, batch))
        if not is_done:
            phase.note_rejected(device)
        return Worked(device, is_done, None if unlocked == device else unlocked)

    def _train(self, phase: Phase, device: str, step: int, batch: CutBatch) -> None:
        started = self._clock()
        try:
            loss = self._model.train(
                device,
                tensor_of(batch.features),
                tensor_of(batch.labels),
                round_number=phase.opened.round,
                step=step,
                steps=phase.participants[device].steps,
            )
        except Untrainable as error:
            phase.note_untrainable(device)
            raise MalformedMessage(str(error), "untrainable") from None
        phase.note_trained(device, loss)
        self.trained.add(len(batch.labels), self._clock() - started)

    def _observe(self, phase: Phase, device: str, step: int, batch: CutBatch) -> None:
        number = phase.opened.round
        try:
            self._model.observe(device, tensor_of(batch.features), round_number=number, step=step)
        except Untrainable as error:
            raise MalformedMessage(str(error), "untrainable") from None
        phase.note_observed()

    def _evaluate(self, phase: Phase, device: str, _step: int, batch: CutBatch) -> None:
        features = tensor_of(batch.features)
        trunk = self._model.logits(device, features).numpy()
        found = self._model.exit_logits(device, features) if self._spec.release else None
        exit_logits = None if found is None else found.numpy()
        phase.note_evaluated(device, batch, trunk, self._spec.threshold, exit_logits)
