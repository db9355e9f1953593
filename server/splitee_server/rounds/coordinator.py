# SPDX-License-Identifier: Apache-2.0
"""Coordinates a run from its last commit to its end: opens, trains, commits and evaluates rounds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import inf
from types import MappingProxyType
from typing import Any

from msgspec.structs import replace

from splitee.cli import words
from splitee.clock import Clock
from splitee.errors import Diverged
from splitee.mqtt.rate_limiter import RateLimiter
from splitee.protocol.fields import RunPhase
from splitee.protocol.fleet import Metrics
from splitee.protocol.rounds import Participant, RoundOpen
from splitee.protocol.run_spec import RunSpec
from splitee_server.announcer import Announcer
from splitee_server.learning.fleet_model import FleetModel
from splitee_server.members.members import Member, Members
from splitee_server.members.traffic import FleetTraffic
from splitee_server.ranks.ranks import ALONE, Ranks
from splitee_server.rounds.attendance import NOBODY, Attendance, Release
from splitee_server.rounds.batch_work import BatchWork
from splitee_server.rounds.best_round import BestRound
from splitee_server.rounds.checkpoints import Checkpoints
from splitee_server.rounds.class_report import class_report
from splitee_server.rounds.commits import START_ANEW, Commits
from splitee_server.rounds.deadline import Deadline
from splitee_server.rounds.opening import open_phase
from splitee_server.rounds.overview import Overview
from splitee_server.rounds.phase import PHASE_DESCRIPTIONS, Phase
from splitee_server.rounds.policy import Policy
from splitee_server.rounds.progress import RunProgress, device_snapshot
from splitee_server.rounds.replies import Replies
from splitee_server.rounds.report import log_metrics, round_metrics, run_report, with_thresholds
from splitee_server.rounds.settling import settle_run

CHECK_EVERY = 1.0  # seconds between two checks for missing devices

log = logging.getLogger(__name__)


class Coordinator:
    """One run. `phases` yields the phases; its caller receives the devices' messages meanwhile."""

    def __init__(
        self,
        spec: RunSpec,
        model: FleetModel,
        members: Members,
        announcer: Announcer,
        replies: Replies,
        commits: Commits,
        checkpoints: Checkpoints,
        policy: Policy,
        release: Release,
        best: BestRound,
        deadline: Deadline,
        traffic: FleetTraffic,
        *,
        attempt: int,
        rejected: Callable[[], int],
        guard: Callable[[str, Callable[[], None]], bool],
        conflict: Callable[[], str],
        evaluated: Callable[[Metrics], None] = lambda _metrics: None,
        ranks: Ranks = ALONE,
        clock: Clock = time.monotonic,
    ) -> None:
        """`best`, `deadline`, `traffic`: what this process knows of the run's earlier rounds.

        `attempt`: of the rounds that this process opens. `rejected`: number of rejected messages.

        `conflict`: why devices that wait may not join; empty if nothing hinders them.
        `ranks`: the other ranks that train, if this server has several.
        `guard`: works on a device's batch; False: it raised an error, and the batch is rejected.
        """
        self._spec = spec
        self._model = model
        self._members = members
        self._announce = announcer
        self._commits = commits
        self._checkpoints = checkpoints
        self._policy = policy
        self._replies = replies
        self._release = release
        self._attempt = attempt
        self._rejected = rejected
        self._evaluated = evaluated
        self._clock = clock
        self._best = best
        self._deadline = deadline
        self._traffic = traffic
        self._attendance = Attendance(spec, model, members, policy, release, clock, conflict)
        self._metrics: Metrics | None = None  # of the committed round
        self._work = BatchWork(spec, model, guard, clock)
        self._overview = Overview(spec.run, spec.rounds, model, announcer, checkpoints, best, clock)
        self._check_due = clock()
        self._log_lost = RateLimiter()
        self._ranks = ranks
        self._phase = self._open("gather", announce=False)

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def work(self) -> BatchWork:
        """The work on the batches of the phase."""
        return self._work

    def is_remote(self, device: str) -> bool:
        """Whether another rank of this server takes the device's batches."""
        return self._ranks.is_remote(device)

    @property
    def commits(self) -> Commits:
        return self._commits

    def resume(self) -> None:
        """Load the last commit. Must be called first."""
        self._commits.resume()
        self._metrics = self._checkpoints.evaluated(self._commits.round)
        self._overview.resume(self._metrics, self._members.dismissed)
        if self._metrics is not None:
            self._evaluated(self._metrics)

    def phases(self) -> Iterator[Phase]:
        """The phases of the run in order. Each must end before the next is requested."""
        if not self._is_over():
            self._open("gather")  # first: no device may take a run that goes on for finished
        self._announce.run(self._spec_now())
        yield from self._gather()
        if self._spec.awaits_fleet:
            self._spec = settle_run(self._spec, self._model, self._members, self._checkpoints)
            for member in self._members.active():  # first: its initial weights have changed
                self._replies.assign(member.device)
            self._announce.run(self._spec_now())
        if self._commits.round and self._metrics is None:
            yield from self._refresh_and_evaluate()
        while not self._is_over():
            yield from self._train(self._commits.round + 1)
            yield from self._refresh_and_evaluate()
        if self._commits.round < self._spec.rounds:
            log.info("no better accuracy in %d rounds: the run ends (--stop-after)", self._policy.stop_after)
        self._write_report()
        if self._spec.release:
            yield from self._release_models()
        self._open("finished")
        self._write_report()  # once more, because models were sent
        log.info(
            "run %s finished: %d rounds, weights %s",
            self._spec.run,
            self._commits.round,
            self._commits.weights_sha256,
        )

    # Called by the code that iterates over `phases`

    def work_one(self) -> bool:
        """Train, observe or evaluate the next batch; False: it has not arrived."""
        for device in self._phase.leaving():
            self._model.sum_up(device)
        worked = self._work.work_one(self._phase)
        if worked is None:
            return False
        device, is_done, unlocked = worked
        if not is_done:
            self._check_divergence()
        if device in self._phase and not self._phase.is_ahead(device):
            self._replies.acknowledge(self._phase, device)
        if unlocked is not None:
            self._replies.acknowledge(self._phase, unlocked)
        return True

    def tick(self) -> None:
        """Publish the run's progress and the missing devices; at the deadline continue without these.

        Goes through all devices, so it acts at most every CHECK_EVERY seconds, although each batch calls it.
        """
        if self._ranks.follow(self._phase, self._model):
            self._check_divergence()
        if self._clock() < self._check_due:
            return
        self._check_due = self._clock() + CHECK_EVERY
        self.heartbeat()
        self._commits.note_duplicates(self._ranks.take_duplicates())
        self._attendance.log_waiting(self._phase, self._doing, self._commits.round)
        late = self._deadline.expired(self._phase, self._attendance.quorum, self._members.is_online)
        if late is not None:
            self._go_on_without(late.devices)
            self._members.absent(late.devices)
            names = ", ".join(late.devices)
            log.warning("%s: going on without %s after %.0f s", self._doing, names, late.seconds)

    def note_arriving(self, device: str) -> None:
        """Note that part of a batch, or of a client network, has arrived from a device."""
        self._phase.note_arriving(device)

    def exclude(self, device: str) -> None:
        """Continue without a device that is in quarantine."""
        if device in self._phase:
            self._go_on_without((device,))
        self.heartbeat(now=True)

    def _go_on_without(self, devices: tuple[str, ...]) -> None:
        phase = self._phase
        unlocked = [phase.windows.drop(device) for device in devices]
        phase.go_on_without(devices)
        for device in devices:
            self._model.forget(device)
            self._announce.participation(device, phase.opened, None)
        self._ranks.go_on_without(devices)
        self._announce.round(phase.opened)
        for other in unlocked:
            if other is not None and other in phase:
                self._replies.acknowledge(phase, other)

    def depends_on(self, devices: Iterable[str]) -> bool:
        """Whether uncommitted work depends on these devices."""
        if self._phase.kind in ("release", "finished"):
            return False
        return any(
            self._phase.has_begun_with(device) or (device in self._members and device not in self._commits)
            for device in devices
        )

    def describe_remaining(self) -> str:
        """The devices that the run continues with, as a phrase."""
        return self._attendance.describe_remaining(self._commits.round)

    def join(self, member: Member, *, is_new: bool) -> None:
        """Note a device that has joined, restarted, or repeated or changed what it reports of itself."""
        self._commits.join(member)
        self._announce.run(self._spec_now())
        if is_new:
            self._replies.reply_to_sync(self._phase, member.device)
        else:
            self._replies.assign(member.device, repeat_after=inf)

    def republish_all(self) -> None:
        """Publish everything again after a reconnection: messages and retained state may have been lost."""
        self._announce.republish()
        self.heartbeat()
        for device in self._phase.participants:
            self._replies.acknowledge(self._phase, device, resend=self._phase.lacks(device))

    def request_again(self) -> None:
        """After a loss of messages, request at once what may be missing, without waiting for a `sync`."""
        count = sum(self._replies.request_again(self._phase, device) for device in self._phase.late())
        if self._log_lost.due():
            log.warning(
                "messages were lost, as more came than were handled: requested again from %s",
                words.devices(count),
            )

    def heartbeat(self, *, now: bool = False) -> None:
        """Publish the server's status if it is due, or if `now` is set."""
        waiting_for = self._attendance.waiting_for(self._phase)
        members = self._members
        out = members.quarantined(), members.dismissed
        self._overview.note_waiting(self._phase, waiting_for)
        if self._announce.heartbeat(self._doing, waiting_for, self._rejected(), *out, now=now):
            self._overview.heartbeat(self._phase)

    # Rounds

    def _gather(self) -> Iterator[Phase]:
        """Wait for the devices that the next round needs; a run that is over needs none."""
        if self._is_over():
            return
        if self._attendance.missing(self._commits.round):
            yield self._open("gather", is_over=lambda: not self._attendance.missing(self._commits.round))

    def _is_over(self) -> bool:
        """Whether nothing is left to train or to evaluate."""
        committed = self._commits.round
        if committed and self._metrics is None:
            return False
        return committed >= self._spec.rounds or self._best.ends_run(committed)

    def _train(self, number: int) -> Iterator[Phase]:
        """Open a round, train, commit; once more if no device was left in it."""
        while True:
            if self._policy.missing == "skip" or not self._members.active():
                yield from self._gather()
            participants = self._attendance.in_training(number)
            if self._spec.is_sampled:
                log.info("round %d: picked %d of %d devices", number, len(participants), len(self._members))
            phase = self._open("train", participants, number=number)
            yield phase
            if phase.done:
                break
            self._model.abandon_round()
        if len(phase.done) == len(participants):
            self._deadline.note(phase)
        self._ranks.collect(phase, self._model)
        self._commits.commit(phase)
        self._ranks.models_have_changed()

    def _check_divergence(self) -> None:
        """Raises Diverged: most devices' batches give no finite loss, so the cause is not a device."""
        failing, of = self._phase.failing(), len(self._phase.participants)
        if self._phase.kind == "train" and 2 * len(failing) > of:
            raise Diverged(
                f"round {self._phase.opened.round}: the batches of {len(failing)} of {of} devices give no "
                f"finite loss; round {self._commits.round} is kept: {START_ANEW}"
            )

    def _refresh_and_evaluate(self) -> Iterator[Phase]:
        """Take statistics of the committed round, if the run does so, then evaluate it."""
        if self._spec.takes_statistics and not self._model.is_fresh:
            phase = self._open("statistics", self._attendance.in_statistics(self._commits.round))
            yield phase
            self._ranks.collect(phase, self._model)
            self._commits.refresh(phase)
            self._ranks.models_have_changed()
        yield from self._evaluate()

    def _evaluate(self) -> Iterator[Phase]:
        """Score the committed round on the devices' held-out images."""
        phase = self._open("evaluate", self._attendance.in_evaluation(self._commits.round))
        yield phase
        self._ranks.collect(phase, self._model)
        spec = self._spec_now()
        self._metrics = metrics = round_metrics(
            spec,
            self._commits.round,
            self._commits.elapsed(),
            [(member, self._model.stage_name(member.cut)) for member in self._members],
            self._commits.losses,
            phase.scores,
            self._commits.duplicates,
            self._traffic,
            self._commits.round_clock.take(self._work.trained.seconds),
            self._checkpoints.evaluated(self._commits.round - 1) if spec.is_sampled else None,
        )
        report = class_report(spec.run, metrics.round, phase.scores, spec.num_classes, spec.class_names)
        self._checkpoints.write_evaluation(report)
        self._checkpoints.add_metrics(metrics)
        self._save_traffic()
        self._best.note(metrics, phase.scores)
        self._overview.evaluated(metrics, report, self._members.dismissed)
        self._evaluated(metrics)
        log_metrics(metrics)

    def _release_models(self) -> Iterator[Phase]:
        """Export what was trained, and wait for the devices that are online to take their models."""
        committed, scores = self._best.release(self._commits.round)
        phase = self._open("release", is_over=lambda: self._release.is_exported)
        self._release.start(self._spec_now(), committed, scores)
        yield phase
        self._release.offer()
        self._note_thresholds()
        until = self._clock() + self._policy.release
        phase.prolong(lambda: not self._attendance.waiting_for(phase) or self._clock() > until)
        yield phase
        if self._release.missing:
            log.warning(
                "no word of their models from %s: `splitee release` brings them later",
                ", ".join(self._release.missing),
            )

    def _note_thresholds(self) -> None:
        """Add the thresholds of the released models to the round's metrics and the report."""
        assert self._metrics is not None
        metrics = with_thresholds(self._metrics, self._release.thresholds)
        if metrics != self._metrics:
            self._metrics = metrics
            self._checkpoints.add_metrics(metrics)
            self._overview.publish_results(metrics, self._members.dismissed)
            self._write_report()

    # Phases

    def _open(
        self,
        kind: RunPhase,
        participants: Mapping[str, Participant] = MappingProxyType({}),
        *,
        number: int | None = None,
        is_over: Callable[[], bool] | None = None,
        announce: bool = True,
    ) -> Phase:
        """`number`: of the round, if it is not the committed one."""
        opened = RoundOpen(
            run=self._spec.run,
            round=self._commits.round if number is None else number,
            attempt=self._attempt,
            phase=kind,
            participants=len(participants),
        )
        self._traffic.phase = opened.batches
        self._commits.round_clock.open(kind)
        self._phase = open_phase(
            opened,
            participants,
            self._spec,
            self._model,
            self._policy,
            self._ranks,
            max_packet=self._announce.max_packet,
            clock=self._clock,
            is_over=is_over,
        )
        if announce:
            for device in participants:  # before it learns that the phase is open
                self._replies.assign_part(self._phase, device)
            self._announce.round(opened)
            self._overview.opened(self._phase)
            self.heartbeat(now=True)
        return self._phase

    # Where it stands

    def progress(self) -> RunProgress:
        """The run's progress."""
        phase, waiting_for = self._phase, self._attendance.waiting_for(self._phase)
        missing = (
            self._attendance.missing(self._commits.round) if phase.kind == "gather" else len(waiting_for)
        )
        return RunProgress(
            spec=self._spec,
            phase=phase.kind,
            committed=self._commits.round,
            devices=tuple(
                device_snapshot(member, self._traffic.of(member.device))
                for member in self._members.remaining()
            ),
            waiting_for=waiting_for,
            missing=missing,
            waited=self._clock() - phase.progressed_at if missing else 0.0,
            queued=phase.waiting_batches(),
            duplicates=self._commits.duplicates,
            trained=self._ranks.with_trained(self._work.trained),
            metrics=self._metrics,
            estimate=self._overview.estimate(phase),
        )

    def report(self) -> dict[str, Any]:
        """The content of report.json. A round must have been evaluated."""
        assert self._metrics is not None
        return run_report(
            self._spec,
            self._metrics,
            self._best.metrics(self._commits.round),
            list(self._members),
            self._members.dismissed,
            self._commits.weights_sha256,
            self._rejected(),
            self._traffic,
        )

    def _write_report(self) -> None:
        self._checkpoints.write_report(self.report())
        self._save_traffic()

    def _save_traffic(self) -> None:
        self._checkpoints.write_traffic(self._traffic.stored(member.device for member in self._members))

    def _spec_now(self) -> RunSpec:
        """The settings, with the class names once they are decided."""
        return replace(self._spec, class_names=self._members.class_names)

    @property
    def phase_text(self) -> str:
        """The current phase, as a phrase."""
        opened = self._phase.opened
        return f"round {opened.round}: {PHASE_DESCRIPTIONS[opened.phase]}"

    @property
    def _doing(self) -> str:
        doing = (
            f"round {self._phase.opened.round} of {self._spec.rounds}: {PHASE_DESCRIPTIONS[self._phase.kind]}"
        )
        nobody = self._phase.kind == "gather" and self._attendance.is_deserted(self._commits.round)
        return f"{doing}; {NOBODY}" if nobody else doing
