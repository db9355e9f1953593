# SPDX-License-Identifier: Apache-2.0
"""The device's agent: joins a run, trains the rounds the server opens, publishes its features."""

from __future__ import annotations

import gc
import logging
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from msgspec.structs import replace
from torch import Tensor

from splitee import __version__
from splitee.clock import Clock
from splitee.errors import Diverged
from splitee.protocol.cut_batch import CutBatch
from splitee.protocol.fields import LONGEST_CLASS_NAME, MOST_CLASS_NAMES, Doing
from splitee.protocol.fleet import Capability, Profile
from splitee.protocol.rounds import Assignment, Participant, RoundDone, RoundOpen
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import PROTOCOL
from splitee.training.batchnorm_statistics import is_statistic
from splitee.training.soft_labels import SoftLabels, SoftLabelsAssembler, rows_per_round
from splitee.training.state import first_not_finite, weights_digest
from splitee.training.weights import check_messages, pack_weights
from splitee_device.agent.initial_state import InitialState, settled_spec
from splitee_device.agent.last_received import ENDED, Outcome, PhaseKey, phase_key
from splitee_device.agent.monitor import RoundMonitor
from splitee_device.agent.phase import ActivePhase, Superseded
from splitee_device.agent.session import ServerGone, Session
from splitee_device.data.device_images import DeviceImages
from splitee_device.data.statistics import channel_statistics
from splitee_device.training.store import DeviceStore
from splitee_device.training.trainer import ClientTrainer

log = logging.getLogger(__name__)


class Agent:
    """One device in one run."""

    def __init__(
        self,
        session: Session,
        spec: RunSpec,
        cut: int,
        trainer_at: Callable[[RunSpec, int], ClientTrainer],
        store: DeviceStore,
        monitor: RoundMonitor,
        capability: Capability | None = None,
        *,
        lowest_cut: int = 1,
        alone_accuracy: float | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        """An agent for one run.

        Args:
            trainer_at: makes the trainer of a run for a cut, with the weights that the run's seed gives.
            lowest_cut: the lowest cut that the device accepts or requests.
            alone_accuracy: of the exit that the device trained by itself; None: it trained none.
        """
        self._session = session
        self._last_received = session.last_received
        self._spec = spec
        self._trainer_at = trainer_at
        self._store = store
        self._monitor = monitor
        self._capability = capability
        self._lowest_cut = lowest_cut
        self._alone_accuracy = alone_accuracy
        self._clock = clock
        self._set_cut(cut)
        self._trainer_round: int | None = None  # the committed round that the trainer holds; None: unknown
        self._stale_round = 0  # the committed round that it holds except for its statistics; 0: none
        self._batches = 0  # sent by this process in rounds that are over

    def take_part(self, images: DeviceImages) -> None:
        """Join the run and train until it is finished.

        Raises:
            Rejected: the server refuses this device.
            IdInUse: another process has taken this id.
        """
        session, data = self._session, images.data
        session.guard_cuts(self._spec.run, self._accepts_cut)
        profile = Profile(
            protocol=PROTOCOL,
            instance=session.instance,
            version=__version__,
            cut=self._cut,
            class_names=data.class_names,
            train_samples=len(data.train),
            held_out_samples=len(data.held_out),
            run=self._spec.run,
            capability=self._capability,
            codec=self._spec.codec,
            alone_accuracy=self._alone_accuracy,
            empty_classes=tuple(name for name in data.empty_classes if len(name) <= LONGEST_CLASS_NAME)[
                :MOST_CLASS_NAMES
            ],
        )
        if self._spec.awaits_fleet and self._spec.normalize == "fleet":
            profile = replace(profile, **channel_statistics(data.train))
        session.join(profile)
        done: PhaseKey | None = None
        while (opened := self._next_phase(done)).phase not in ENDED:
            try:
                self._adopt_settings()
                with session.phase(self._spec, opened) as phase:
                    self._restore(phase)
                    if phase.kind == "train":
                        self._train(phase)
                    elif phase.kind == "statistics":
                        self._take_statistics(phase)
                    else:
                        self._evaluate(phase, images)
                done = phase_key(opened)
            except Superseded:
                log.info("round %d: the server has moved on", opened.round)
            self._adopt_images()
        self._finish()
        self._store.finish(self._spec, self._cut)
        self._report("finished", opened.round)

    @property
    def has_trained(self) -> bool:
        """Whether this process has trained a round."""
        return self._batches > 0

    def _next_phase(self, done: PhaseKey | None) -> RoundOpen:
        """Wait for a phase that this device takes part in, or for the end of the run."""
        self._report("waiting", self._trainer_round or 0)
        run = self._spec.run
        self._session.wait(lambda: self._last_received.next_phase(run, done) is not None, "the next round")
        opened = self._last_received.next_phase(run, done)
        assert opened is not None
        return opened

    def _accepts_cut(self, cut: int) -> bool:
        """Whether this device accepts a cut: it has it, had it or requested it, and its owner allows it."""
        return cut >= self._lowest_cut and (cut == self._cut or cut in self._store.cuts)

    def _adopt_settings(self) -> None:
        """Adopt the settings that the server has settled, when it has done so."""
        if self._spec.awaits_fleet:
            self._spec = settled_spec(self._session, self._spec)
            self._replace_trainer(self._cut)

    def _adopt_images(self) -> None:
        """Train and evaluate from now on with the images that came during the last phase, if any."""
        if self._has_other_images:
            self._replace_trainer(self._cut)

    def _replace_trainer(self, cut: int) -> None:
        del self._trainer, self._initial  # a small device has no room for both networks
        gc.collect()
        self._set_cut(cut)

    def _set_cut(self, cut: int) -> None:
        self._cut = cut
        self._trainer = self._trainer_at(self._spec, cut)
        if self._spec.release or self._spec.client_averaging != "none" or self._spec.weights:
            check_messages(self._trainer.weights())  # fail now, not when the training is over
        self._initial = InitialState(self._trainer, self._spec)
        self._knows_frozen = self._initial.is_known  # the trainer's frozen stages are those of the run
        self._trainer_round, self._stale_round = None, 0
        self._has_other_images = False  # there are others than the trainer's

    def _restore(self, phase: ActivePhase) -> None:
        """Bring the trainer to the committed round, and to the cut, that a phase continues from."""
        last_received, opened, part = self._last_received, phase.opened, phase.part
        if (part.base, part.cut) == (self._trainer_round, self._cut):
            return
        self._session.wait(
            lambda: last_received.assignment_for(opened, part) is not None,
            "this device's assignment from the server",
        )
        assignment = last_received.assignment_for(opened, part)
        assert assignment is not None
        self._apply_assignment(assignment)

    def _apply_assignment(self, assignment: Assignment) -> None:
        """Adopt the cut and the weights that the server's last commit assigns to this device."""
        number, digest, store = assignment.committed, assignment.digest, self._store
        moves = assignment.cut != self._cut
        if moves:
            self._change_cut(assignment.cut)
        self._trainer_round = None
        if not assignment.held:
            initial = partial(self._initial_state, assignment)
            store.restore(number, digest, self._trainer, initial, self._session.drain)
        elif self._averages and self._trainer.digest() == digest:  # it has these weights already
            self._save_held(assignment)
        elif moves or self._lacks_statistics(assignment) or not store.holds(number, digest, self._trainer):
            requests, known = self._session.requests, self._known_tensors(assignment)
            self._trainer.adopt(requests.fetch_weights(self._trainer.weights(), assignment, known))
            self._save_held(assignment)
        self._knows_frozen, self._stale_round = True, 0
        if self._averages:
            self._trainer.forget_momentum()
        self._trainer_round = number

    @property
    def _averages(self) -> bool:
        """Whether the server holds this device's network after each commit, and its momentum starts anew."""
        return self._spec.client_averaging != "none"

    def _save_held(self, assignment: Assignment) -> None:
        """Save the network that the server holds, unless the round's statistics are still to come."""
        if self._averages:
            self._trainer.forget_momentum()
        if assignment.fresh or not self._spec.takes_statistics:
            self._store.save(self._spec, self._cut, assignment.committed, self._trainer)
            self._store.commit(assignment.committed)

    def _lacks_statistics(self, assignment: Assignment) -> bool:
        """Whether the trainer has the assigned network except for its statistics."""
        return assignment.fresh and self._stale_round == assignment.committed

    def _known_tensors(self, assignment: Assignment) -> dict[str, Tensor]:
        """The tensors of the assigned network that the trainer has, and that need not be sent."""
        if self._lacks_statistics(assignment):
            weights = self._trainer.weights()
            return {name: tensor for name, tensor in weights.items() if not is_statistic(name)} | (
                self._trainer.frozen_weights()
            )
        return self._trainer.frozen_weights() if self._knows_frozen else {}

    def _initial_state(self, assignment: Assignment) -> dict[str, Any]:
        """The state in which this device begins the run. Fetched weights are saved as round 0."""
        was_known = self._initial.is_known
        state = self._initial.get(self._session, self._trainer, assignment)
        if not was_known:
            self._store.save(self._spec, self._cut, 0, self._trainer)
        return state

    def _change_cut(self, cut: int) -> None:
        """Change to another cut, with the weights that the run's seed gives."""
        log.info("cut at %d from now on, before at %d", cut, self._cut)
        self._replace_trainer(cut)
        self._session.presence.change_profile(cut=cut, next_cut=0)

    def _finish(self) -> None:
        """Adopt the network of the last commit, which may have given this device other weights."""
        assignment = self._last_received.assignment
        if (
            assignment is None
            or assignment.run != self._spec.run
            or not assignment.held
            or self._trainer_round == assignment.committed
        ):
            return
        try:
            with self._session.needing_server():
                self._apply_assignment(assignment)
        except ServerGone:
            log.warning(
                "the run is over and its server is gone: this device does not get the network of round %d",
                assignment.committed,
            )

    def _train(self, phase: ActivePhase) -> None:
        """Train a round, save it durably unless the server will hold it, and wait for its commit."""
        trainer, number = self._trainer, phase.opened.round
        steps = self._steps(phase, trainer.samples)
        log.info("round %d: training %d batches", number, steps)
        started = self._clock()
        self._trainer_round = None
        soft_labels = self._soft_labels(phase)
        for step, batch in enumerate(self._monitor.steps(trainer.round(number, soft_labels, steps))):
            self._send(phase, step, batch)
            self._report("training", number, step + 1, steps, trainer.loss, batches=step + 1)
            self._session.drain()
        self._check_finite(number)
        if not (self._averages and phase.part.weights):  # otherwise the server holds the result
            self._store.save(self._spec, self._cut, number, trainer)
        self._batches += steps
        digest = trainer.digest()
        done = self._round_done(phase, digest, self._clock() - started)
        phase.finish(done, partial(self._packed_weights, phase.opened, phase.part))
        self._report("waiting", number, steps, steps, trainer.loss)
        self._await_commit(phase, digest)
        self._review_cut(number)

    def _check_finite(self, number: int) -> None:
        """Raises Diverged: no server accepts the round. Features of frozen stages alone do not show it."""
        where = first_not_finite(self._trainer.trained_weights())
        if where is None and not math.isfinite(self._trainer.loss):
            where = "the exit's loss"
        if where is not None:
            raise Diverged(
                f"round {number}: {where} holds a value that is not finite: training diverged, lower the "
                "learning rate"
            )

    def _round_done(self, phase: ActivePhase, digest: str, seconds: float) -> RoundDone:
        """The message that this device has done its part of a phase."""
        opened, trainer = phase.opened, self._trainer
        return RoundDone(
            run=opened.run,
            round=opened.round,
            attempt=opened.attempt,
            digest=digest,
            batches=phase.part.steps,
            bytes=phase.outbox.published,
            loss=trainer.loss,
            accuracy=trainer.accuracy,
            seconds=seconds,
            phase=phase.kind,
            waited=phase.waited,
        )

    def _send(self, phase: ActivePhase, step: int, batch: CutBatch) -> None:
        """Publish a batch when there is room for it in the server's window."""
        outbox, started = phase.outbox, self._clock()
        self._session.wait(lambda: not outbox.full, "room in the server's window")
        phase.waited += self._clock() - started
        if outbox.needs(step):
            outbox.add(step, batch.message(self._spec, phase.opened, phase.kind, step).encode())

    def _await_commit(self, phase: ActivePhase, digest: str) -> None:
        """Wait for the commit of the round. Raises Superseded: it was committed without this device."""
        opened, number = phase.opened, phase.opened.round
        last_received = self._last_received
        self._session.wait(
            lambda: last_received.outcome(opened, digest) is not Outcome.PENDING,
            f"the commit of round {number}",
        )
        if last_received.outcome(opened, digest) is Outcome.COMMITTED_WITHOUT:
            raise Superseded
        self._store.commit(number)
        if not phase.part.weights:
            self._trainer_round = number  # otherwise the server may have assigned other weights
        log.info("round %d: committed, exit loss %.4f", number, self._trainer.loss)

    def _take_statistics(self, phase: ActivePhase) -> None:
        """Send training batches through the committed network, and the BatchNorm statistics found in them."""
        opened, trainer, number = phase.opened, self._trainer, phase.opened.round
        started = self._clock()
        self._trainer_round, self._stale_round = None, number  # the server gives it other statistics
        steps = phase.part.steps
        for step, batch in enumerate(trainer.statistics(number, steps)):
            self._send(phase, step, batch)
            self._report("training", number, step + 1, steps, trainer.loss)
            self._session.drain()
        found = trainer.fresh_statistics()
        weights = partial(pack_weights, opened.run, number, opened.attempt, found, phase.kind)
        phase.finish(self._round_done(phase, weights_digest(found), self._clock() - started), weights)
        self._session.wait(
            lambda: self._last_received.has_passed(opened), "the statistics of the other devices"
        )

    def _steps(self, phase: ActivePhase, samples: int) -> int:
        """Batches of a phase: as many as the server expects, even if this device has other images by now."""
        part = phase.part
        if part.samples != samples:
            log.warning(
                "round %d began when this device had %d images; with %d it goes on for the same %d batches",
                phase.opened.round, part.samples, samples, part.steps,
            )  # fmt: skip
        return part.steps

    def _soft_labels(self, phase: ActivePhase) -> SoftLabels | None:
        """What the trunk predicted for this device's images in an earlier round, if the server has it.

        Other images in that round, even as many, would get each other's soft labels.
        """
        part, opened = phase.part, phase.opened
        if not self._spec.soft_labels:
            return None
        since = self._store.trained_since(opened.round)
        if not part.soft_labels or part.soft_labels < since or part.samples != self._trainer.samples:
            return None
        rows = rows_per_round(self._spec, self._trainer.samples)
        return self._session.requests.fetch_soft_labels(
            SoftLabelsAssembler(opened.run, opened.attempt, part.soft_labels, rows, self._spec.num_classes)
        )

    def _packed_weights(self, opened: RoundOpen, part: Participant) -> Iterator[bytes]:
        """The client network as messages, if the server has requested it."""
        if not part.weights:
            return iter(())
        return pack_weights(opened.run, opened.round, opened.attempt, self._trainer.trained_weights())

    def _review_cut(self, number: int) -> None:
        """Request another cut if the measurements of the rounds so far suggest one."""
        cut_request = self._monitor.end_round(number, self._cut)
        if cut_request is not None and cut_request.cut >= self._lowest_cut:
            self._store.request_cut(self._spec, self._cut, cut_request.cut)
            if self._capability is not None:
                self._capability = replace(self._capability, reason=cut_request.reason[:1000])
            self._session.presence.change_profile(next_cut=cut_request.cut, capability=self._capability)

    def _evaluate(self, phase: ActivePhase, images: DeviceImages) -> None:
        """Send the held-out batches with the exit's predictions; then look for new images."""
        trainer = self._trainer
        steps = self._steps(phase, trainer.held_out)
        for step, batch in enumerate(trainer.evaluate(steps)):
            if step == steps - 1:  # once the server has this batch, it may open the next phase
                self._store.save_mistakes(phase.opened.round, trainer.mistakes)
                self._refresh_images(images)
            self._send(phase, step, batch)
            self._report("evaluating", phase.opened.round, step + 1, steps, trainer.loss)
            self._session.drain()
        self._session.wait(lambda: phase.outbox.empty, "the server to evaluate")

    def _refresh_images(self, images: DeviceImages) -> None:
        """Read the image folders again if they have changed, and report that to the server."""
        if not images.refresh():
            return
        self._has_other_images = True
        self._store.save_division()
        data = images.data
        counts = {"train_samples": len(data.train), "held_out_samples": len(data.held_out)}
        self._session.presence.change_profile(**counts)

    def _report(
        self,
        doing: Doing,
        number: int,
        step: int = 0,
        steps: int = 0,
        loss: float | None = None,
        *,
        batches: int = 0,
    ) -> None:
        """`batches`: of the current round."""
        self._session.presence.report(doing, number, step, steps, loss, batches=self._batches + batches)
