"""One phase of a round while it is under way: what has come, what is missing, since when."""

from __future__ import annotations

import time
from typing import Literal

from splitee.protocol.rounds import RoundDone, RoundOpen
from splitee.training.weights import WeightsAssembler
from splitee_server.members.reception import Batch
from splitee_server.rounds.batch_order import BatchOrder
from splitee_server.rounds.evaluation import Score

PHASES = {
    "gather": "gathering devices",
    "train": "training",
    "evaluate": "evaluating",
    "release": "releasing models",
    "finished": "finished",
}


class PhaseUnderWay:
    """Gathering, training or evaluating, with its participants' batches and words."""

    def __init__(
        self,
        opened: RoundOpen,
        rounds: int,
        order: Literal["step", "device", "any"],
        window: int,
        arrivals: dict[str, WeightsAssembler],
    ) -> None:
        """`rounds`: of the run. `arrivals`: for the client networks of those who send theirs."""
        self.opened = opened
        self._rounds = rounds
        self.arrivals = arrivals
        steps = {device: participant.steps for device, participant in opened.participants.items()}
        self.schedule: BatchOrder[Batch] = BatchOrder(order, steps, window)
        self.done: dict[str, RoundDone] = {}
        self.loss_sums = dict.fromkeys(opened.participants, 0.0)
        self.scores = {device: Score() for device in opened.participants}
        self.started = self.progressed = time.monotonic()

    @property
    def doing(self) -> str:
        """In words."""
        return f"round {self.opened.round} of {self._rounds}: {PHASES[self.opened.phase]}"

    @property
    def is_over(self) -> bool:
        return not self.behind()

    def is_current(self, number: int, attempt: int, phase: str) -> bool:
        """Whether a message speaks of this phase."""
        return (number, attempt, phase) == (self.opened.round, self.opened.attempt, self.opened.phase)

    def behind(self) -> tuple[str, ...]:
        """The participants that have not done their part."""
        behind = set(self.schedule.missing())
        if self.opened.phase == "train":
            behind |= self.opened.participants.keys() - self.done.keys()
        return tuple(sorted(behind))

    def late(self) -> tuple[str, ...]:
        """Those of them that are waited for: what they must send next is not here.

        The others wait themselves, for their turn.
        """
        return tuple(device for device in self.behind() if not self.schedule.has_next(device))

    def go_on_without(self, devices: tuple[str, ...]) -> None:
        """Drop participants that are missing; the others, which may have waited for them, get time anew."""
        self.started = self.progressed = time.monotonic()
        for device in devices:
            self.schedule.drop(device)
            self.done.pop(device, None)
            self.arrivals.pop(device, None)
        left = {d: p for d, p in self.opened.participants.items() if d not in devices}
        self.opened = RoundOpen(
            run=self.opened.run,
            round=self.opened.round,
            attempt=self.opened.attempt,
            phase=self.opened.phase,
            participants=left,
        )

    def trunk_loss(self, device: str) -> float | None:
        """Mean over the batches trained so far."""
        trained = self.schedule.next_step(device)
        return self.loss_sums[device] / trained if trained else None
