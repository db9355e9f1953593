# SPDX-License-Identifier: Apache-2.0
"""The participants of a phase, the number of devices that it needs, and the devices it waits for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Protocol

from splitee.clock import Clock
from splitee.log_limits import Reminder
from splitee.protocol.accuracies import ReleasedThreshold
from splitee.protocol.rounds import Participant
from splitee.protocol.run_spec import RunSpec
from splitee.training.batchnorm_statistics import statistics_steps
from splitee.training.epochs import evaluation_steps, steps_per_round
from splitee_server.learning.fleet_model import FleetModel
from splitee_server.members.members import Member, Members
from splitee_server.rounds.checkpoints import Committed
from splitee_server.rounds.evaluation import Score
from splitee_server.rounds.pace import steps_within
from splitee_server.rounds.phase import Phase
from splitee_server.rounds.policy import Policy
from splitee_server.rounds.sampling import pick

SHOWN = 20  # devices that a line names
NOBODY = "no device is left: waiting for one to join"

log = logging.getLogger(__name__)


class Release(Protocol):
    """The end of a run: the trained models are exported and offered to the devices."""

    def start(self, spec: RunSpec, committed: Committed, scores: Mapping[str, Score]) -> None: ...

    @property
    def is_exported(self) -> bool: ...

    def offer(self) -> None: ...

    @property
    def missing(self) -> list[str]:
        """Devices that have not reported the outcome of their model."""

    @property
    def thresholds(self) -> Mapping[str, ReleasedThreshold]:
        """Thresholds of the offered models, by device."""


class Attendance:
    """Compares the devices of a run with the requirements of its policy."""

    def __init__(
        self,
        spec: RunSpec,
        model: FleetModel,
        members: Members,
        policy: Policy,
        release: Release,
        clock: Clock,
        conflict: Callable[[], str],
    ) -> None:
        """`conflict`: why devices that wait may not join; empty if nothing hinders them."""
        self._spec = spec
        self._model = model
        self._members = members
        self._policy = policy
        self._release = release
        self._clock = clock
        self._conflict = conflict
        self._reminder = Reminder()

    def missing(self, committed: int) -> int:
        """Number of devices that must still join before the round after `committed` opens."""
        active, online = len(self._members.active()), len(self._members.online())
        first = self._members.expected(self._policy.devices)
        if self._policy.missing == "wait":
            return max(len(self._gone(committed)) if committed else first - online, 1 - online, 0)
        to_join = 0 if committed else first - active  # members that are offline are not waited for
        return max(to_join, self.quorum - online, 1 - online, 0)

    @property
    def quorum(self) -> int:
        """Smallest number of devices of a round under `skip`; at most the devices that are not dismissed."""
        there = max(self._members.expected(self._policy.devices), len(self._members.active()))
        return min(self._policy.quorum, there)

    def is_deserted(self, committed: int) -> bool:
        """Whether every device that the run had, or was to begin with, was dismissed."""
        dismissed, there = self._members.dismissed, self._members.remaining()
        return not there and len(dismissed) >= (1 if committed else self._policy.devices)

    def describe_remaining(self, committed: int) -> str:
        """The devices that the run continues with, as a phrase. `committed`: number of rounds."""
        if self.is_deserted(committed):
            return NOBODY
        if not committed:
            devices, wanted = self._policy.devices, self._members.expected(self._policy.devices)
            return f"round 1 waits for {wanted} of the {devices} devices (--devices)"
        active = [member.device for member in self._members.active()]
        more = ", ..." if len(active) > SHOWN else ""
        return f"the run goes on with {', '.join(active[:SHOWN])}{more}"

    def in_training(self, number: int) -> dict[str, Participant]:
        """The participants of round `number`, each with its task."""
        return {member.device: self._in_training(number, member) for member in self._picked(number)}

    def in_statistics(self, committed: int) -> dict[str, Participant]:
        """The participants in a phase of statistics: the devices that hold the committed round."""
        return {
            member.device: Participant(
                member.cut,
                statistics_steps(self._spec, member.train_samples),
                committed,
                member.train_samples,
                weights=True,
            )
            for member in self._taking_part()
            if member.committed == committed and self._was_picked(member, committed)
        }

    def in_evaluation(self, committed: int) -> dict[str, Participant]:
        """The participants in an evaluation: devices with the committed round and held-out images."""
        return {
            member.device: Participant(
                member.cut,
                evaluation_steps(member.held_out_samples),
                member.committed,
                member.held_out_samples,
                fresh=self._model.is_fresh,
            )
            for member in self._taking_part()
            if member.held_out_samples and self._evaluates(member, committed)
        }

    def waiting_for(self, phase: Phase) -> tuple[str, ...]:
        """The known devices whose next message the phase needs to continue."""
        if phase.kind == "release":
            online = {member.device for member in self._members.online()}
            return tuple(device for device in self._release.missing if device in online)
        if phase.kind == "gather":
            suffice = self._policy.missing == "skip" and len(self._members.online()) >= self.quorum
            return () if suffice else tuple(self._gone(phase.opened.round))
        return phase.late()

    def log_waiting(self, phase: Phase, doing: str, committed: int) -> None:
        """Log from time to time which devices are waited for, while nothing comes."""
        if not self._reminder.due(self._clock(), phase.progressed_at, (phase.kind, phase.opened.round)):
            return
        if not self.is_deserted(committed):  # otherwise `doing` says it already
            more = self.missing(committed)
            unknown = f"{more} more device{'s' if more > 1 else ''}" if more else ""
            waiting_for = self.waiting_for(phase)
            rest = f" and {len(waiting_for) - SHOWN} more" if len(waiting_for) > SHOWN else ""
            whom = ", ".join(waiting_for[:SHOWN]) + rest or unknown
            online = f"{len(self._members.online())} online"
            doing = f"{doing}: waiting for {whom} ({online})" if whom else f"{doing} ({online})"
        log.info("%s", doing)
        if conflict := self._conflict():
            log.warning("%s", conflict)

    def _taking_part(self) -> list[Member]:
        """Under `wait` every device, online or not; those in quarantine never."""
        return self._members.online() if self._policy.missing == "skip" else self._members.active()

    def _picked(self, number: int) -> list[Member]:
        """The devices that are to train round `number`."""
        last_picked = {member.device: member.picked for member in self._taking_part()}
        least = self.quorum if self._policy.missing == "skip" else 1
        return [self._members[device] for device in pick(self._spec, number, last_picked, least)]

    def _was_picked(self, member: Member, committed: int) -> bool:
        """Whether a committed round began with the device; without sampling all rounds did."""
        return not self._spec.is_sampled or member.picked == committed

    def _evaluates(self, member: Member, committed: int) -> bool:
        """Whether a device is to evaluate a committed round.

        After the last round all devices do, so that each has its final network, and its figures are of that.
        If client networks are not averaged, it may be one of an earlier round.
        """
        spec = self._spec
        if not spec.is_sampled or (spec.evaluated_by == "sample" and committed < spec.rounds):
            return member.committed == committed and self._was_picked(member, committed)
        return member.committed == committed or (spec.client_averaging == "none" and member.committed > 0)

    def _gone(self, committed: int) -> list[str]:
        """The devices that are not online, and without which the next round does not open."""
        of_round = committed and self._policy.missing == "wait"
        wanted = self._picked(committed + 1) if of_round else self._members.active()
        return [member.device for member in wanted if not member.online]

    def _steps(self, member: Member) -> int:
        """Batches that it trains in the next round."""
        most, seconds = steps_per_round(self._spec, member.train_samples), self._spec.round_seconds
        return steps_within(seconds, member.pace, most) if seconds else most

    def _in_training(self, number: int, member: Member) -> Participant:
        spec, is_last = self._spec, number == self._spec.rounds
        next_cut = 0 if is_last else member.next_cut  # a new exit would learn nothing more
        soft_labels = self._model.soft_labels(member.device)
        return Participant(
            member.cut,
            self._steps(member),
            member.committed,
            member.train_samples,
            # If a run releases its best round, any round may be that one.
            weights=spec.client_averaging != "none" or bool(next_cut) or spec.release,
            next_cut=next_cut,
            soft_labels=soft_labels.round if soft_labels else 0,
            fresh=self._model.is_fresh,
        )
