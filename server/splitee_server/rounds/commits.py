# SPDX-License-Identifier: Apache-2.0
"""Commits: the models of a round are aggregated, saved durably, and only then announced."""

from __future__ import annotations

import logging
from collections.abc import Collection

from splitee.clock import Clock
from splitee.errors import Diverged
from splitee.protocol.run_spec import RunSpec
from splitee.training.state import first_not_finite, fleet_digest
from splitee_server.announcer import Announcer
from splitee_server.learning.fleet_model import Contribution, FleetModel
from splitee_server.members.members import Member, Members
from splitee_server.rounds.checkpoints import Checkpoints, Committed
from splitee_server.rounds.phase import Phase
from splitee_server.rounds.replies import Replies
from splitee_server.rounds.round_seconds import RoundClock

log = logging.getLogger(__name__)

START_ANEW = "training diverged; start anew (--fresh) with a lower --learning-rate or --trunk-learning-rate"


class Commits:
    """The run's last commit, and the step to the next one.

    Attributes:
        round_clock: how the time of a round is spent, including commits.
    """

    def __init__(
        self,
        spec: RunSpec,
        model: FleetModel,
        members: Members,
        announcer: Announcer,
        replies: Replies,
        checkpoints: Checkpoints,
        clock: Clock,
        readmit: Collection[str] = (),
    ) -> None:
        """`readmit`: devices that a resumed run lets back from quarantine."""
        self._spec = spec
        self._model = model
        self._members = members
        self._announce = announcer
        self._replies = replies
        self._checkpoints = checkpoints
        self._clock = clock
        self._readmit = readmit
        self._started = clock()
        self._seconds = 0.0  # of earlier processes
        self._round = 0
        self._weights_sha256 = ""
        self._duplicates = 0
        self._losses: dict[str, tuple[float, float | None]] = {}
        self._stored: frozenset[str] = frozenset()
        self.round_clock = RoundClock(clock)

    def __contains__(self, device: str) -> bool:
        """Whether the last commit knows the device."""
        return device in self._stored

    @property
    def round(self) -> int:
        """The last committed round; 0 before the first."""
        return self._round

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of all trunk and client weights of that round."""
        return self._weights_sha256

    @property
    def duplicates(self) -> int:
        """Number of batches that arrived twice in this run."""
        return self._duplicates

    @property
    def losses(self) -> dict[str, tuple[float, float | None]]:
        """Losses of exit and trunk by device: means over the batches of its last round."""
        return self._losses

    def elapsed(self) -> float:
        """Seconds of the run so far, including those of earlier processes."""
        return self._seconds + self._clock() - self._started

    def note_duplicates(self, count: int) -> None:
        self._duplicates += count

    def resume(self) -> None:
        """Load the last commit of the state folder; a new run has none."""
        stored = self._checkpoints.load()
        if stored is None:
            return
        self._round = stored.round
        self._weights_sha256 = stored.weights_sha256
        self._duplicates = stored.duplicates
        self._seconds = stored.seconds
        self._members.load(stored.members, stored.class_names)
        self._members.readmit(self._readmit)
        self._model.load(vars(stored))
        for member in self._members:
            self._model.join(member.device, member.cut, member.train_samples)
            self._replies.assign(member.device)
        self._stored = frozenset(state["device"] for state in stored.members)
        self._announce_commit()
        log.info("resuming run %s after round %d", self._spec.run, self._round)

    def join(self, member: Member) -> None:
        """Note a device that has joined or restarted; a late one starts from the average of its cut."""
        self._model.join(member.device, member.cut, member.train_samples)
        if not member.committed:
            self._model.adopt(member.device)
            self._start_from_held(member.device)

    def commit(self, phase: Phase) -> None:
        """End a training phase: aggregate, save durably, and only then announce the commit."""
        self._round = number = phase.opened.round
        self._members.note_picked(phase.begun_with, number)
        for device, done in phase.done.items():
            self._members.end_round(done, device, phase.trained_batches(device), phase.pace(device))
            self._losses[device] = done.loss, phase.trunk_loss(device)
        parts = phase.participants
        contributions = {
            device: Contribution(phase.weights(device), parts[device].next_cut, parts[device].samples)
            for device in phase.done
        }
        with self.round_clock.of("aggregation"):
            moved = self._model.commit(number, contributions)
        for device, cut in moved.items():
            log.info("%s is cut at %d now, before at %d", device, cut, self._members[device].cut)
            self._members.move(device, cut)
        if self._model.left_out:
            names = ", ".join(self._model.left_out)
            log.info("round %d trains without %s: their loss is far above most", number + 1, names)
        with self.round_clock.of("commit"):
            self._save_and_publish()
        log.info("round %d of %d: committed by %d devices", number, self._spec.rounds, len(phase.done))

    def refresh(self, phase: Phase) -> None:
        """End a phase of statistics: save their changes of the commit, and announce it again."""
        with self.round_clock.of("aggregation"):
            self._model.refresh({device: phase.weights(device) or {} for device in phase.done})
        with self.round_clock.of("commit"):
            self._save_and_publish()

    def _save_and_publish(self) -> None:
        """Make the result of the round durable, then publish it."""
        for member in self._members:
            self._start_from_held(member.device)
        self._weights_sha256 = fleet_digest(self._model.trunk_weights(), self._members.digests())
        self._save()
        for member in self._members:
            if member.committed in (0, self._round):  # a device that begins next also begins from this commit
                self._replies.assign(member.device)
        self._announce_commit()

    def _start_from_held(self, device: str) -> None:
        """A device that was not picked, and has a network of its own, goes on from that."""
        if not self._model.holds(device):
            return
        digest, is_own = self._model.digest(device), self._spec.client_averaging == "none"
        if not (self._spec.is_sampled and is_own and digest == self._members[device].digest):
            self._members.start_from(device, self._round, digest)

    def _save(self) -> None:
        """Raises Diverged: a value is not finite; the previous commit stays the last one."""
        state = self._model.state()
        if (where := first_not_finite(state)) is not None:
            raise Diverged(
                f"round {self._round} is not committed, because {where} holds a value that is not finite: "
                f"{START_ANEW}"
            )
        members = self._members.state()
        self._checkpoints.save(
            Committed(
                round=self._round,
                members=members,
                class_names=self._members.class_names,
                weights_sha256=self._weights_sha256,
                duplicates=self._duplicates,
                seconds=self.elapsed(),
                **state,
            ),
            changes_follow=self._spec.takes_statistics,
        )
        self._stored = frozenset(member["device"] for member in members)

    def _announce_commit(self) -> None:
        self._announce.commit(self._round, self._weights_sha256)
