"""The device's agent: joins a run, trains the rounds the server opens, publishes its features."""

from __future__ import annotations

import copy
import gc
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from splitee import __version__
from splitee.protocol.codecs import encode_tensor
from splitee.protocol.fields import Phase
from splitee.protocol.fleet import Capability, Profile
from splitee.protocol.labels import encode_labels
from splitee.protocol.rounds import Assignment, Features, RoundDone, RoundOpen
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import PROTOCOL
from splitee.training.soft_labels import SoftLabels, SoftLabelsAssembler, rows_a_round
from splitee.training.weights import check_messages, pack_weights
from splitee_device.agent.outbox import Outbox, publish_packed
from splitee_device.agent.session import ENDED, Session, Superseded, phase_key
from splitee_device.data.images import DeviceData
from splitee_device.profiler.drift import DriftMonitor
from splitee_device.training.store import DeviceStore
from splitee_device.training.trainer import ClientTrainer, CutBatch, ExitBatch

log = logging.getLogger(__name__)


@dataclass
class Sent:
    """What this process has published in rounds that are over."""

    batches: int = 0
    bytes: int = 0


class Agent:
    """One device in one run."""

    def __init__(
        self,
        session: Session,
        spec: RunSpec,
        cut: int,
        trainer_at: Callable[[int], ClientTrainer],
        store: DeviceStore,
        watch: DriftMonitor,
        capability: Capability | None = None,
    ) -> None:
        """`trainer_at`: makes the trainer for a cut, with the weights that the run's seed gives."""
        self._session = session
        self._spec = spec
        self._trainer_at = trainer_at
        self._store = store
        self._watch = watch
        self._capability = capability
        self._set_cut(cut)
        self._position: int | None = None  # the committed round that the trainer holds; None: unknown
        self._sent = Sent()

    def take_part(self, data: DeviceData) -> None:
        """Join the run and train until it is finished.

        Raises:
            Rejected: the server does not take this device.
            IdInUse: another process has taken this id.
        """
        self._session.join(
            Profile(
                protocol=PROTOCOL,
                instance=self._session.instance,
                version=__version__,
                cut=self._cut,
                class_names=data.class_names,
                train_samples=len(data.train),
                held_out_samples=len(data.held_out),
                capability=self._capability,
                codec=self._spec.codec,
            )
        )
        done = None
        while (opened := self._next_phase(done)).phase not in ENDED:
            self._session.under_way = opened
            try:
                self._restore(opened)
                if opened.phase == "train":
                    self._train(opened)
                else:
                    self._evaluate(opened)
                done = phase_key(opened)
            except Superseded:
                log.info("round %d: the server has moved on", opened.round)
            finally:
                self._session.under_way = self._session.outbox = self._session.say_done = None
        self._finish()
        self._store.finish(self._spec, self._cut)
        self._say("finished", opened.round)

    def _next_phase(self, done: Any) -> RoundOpen:
        """Wait for a phase that this device takes part in, or for the end of the run."""
        session = self._session

        def is_open() -> bool:
            current = session.round
            if current is None or current.run != self._spec.run or phase_key(current) == done:
                return False
            return current.phase in ENDED or session.device in current.participants

        self._say("waiting", self._position or 0)
        session.wait(is_open, "the next round")
        assert session.round is not None
        return session.round

    def _set_cut(self, cut: int) -> None:
        self._cut = cut
        self._trainer = self._trainer_at(cut)
        if self._spec.release or self._spec.client_averaging != "none":
            check_messages(self._trainer.weights())  # now, not when the training is over
        self._initial = copy.deepcopy(self._trainer.state())
        self._position = None

    def _restore(self, opened: RoundOpen) -> None:
        """Bring the trainer to the committed round, and the cut, that `opened` continues from."""
        mine = opened.participants[self._session.device]
        if (mine.base, mine.cut) == (self._position, self._cut):
            return

        def is_told() -> bool:
            plan = self._session.plan
            return plan is not None and (plan.attempt, plan.committed) == (opened.attempt, mine.base)

        self._session.wait(is_told, "the server's word on this device")
        assert self._session.plan is not None
        self._follow(self._session.plan)

    def _follow(self, plan: Assignment) -> None:
        """Take the cut and the weights that the server's last commit gives this device."""
        moves = plan.cut != self._cut
        if moves:
            log.info("cut at %d from now on, before at %d", plan.cut, self._cut)
            del self._trainer, self._initial  # a small device has no room for both networks
            gc.collect()
            self._set_cut(plan.cut)
            self._session.introduce(cut=plan.cut, next_cut=0)
        self._position = None
        if not plan.held:
            self._store.restore(plan.committed, plan.digest, self._trainer, self._initial)
        elif moves or not self._store.holds(plan.committed, plan.digest, self._trainer):
            self._trainer.adopt(self._session.fetch_weights(self._trainer.weights(), plan))
            self._store.save(self._spec, self._cut, plan.committed, self._trainer)
            self._store.commit(plan.committed)
        if self._spec.client_averaging != "none":
            self._trainer.forget_momentum()
        self._position = plan.committed

    def _finish(self) -> None:
        """After the last commit this device may have got other weights."""
        plan = self._session.plan
        if plan is not None and plan.run == self._spec.run and plan.held and self._position is None:
            self._follow(plan)

    def _train(self, opened: RoundOpen) -> None:
        """Train a round, save it durably, and wait for its commit."""
        session, trainer, number = self._session, self._trainer, opened.round
        steps = self._steps(opened, trainer.samples)
        log.info("round %d: training %d batches", number, steps)
        started = time.monotonic()
        self._position = None
        soft_labels = self._soft_labels(opened)
        outbox = self._open_outbox(opened, "train")
        for step, batch in enumerate(self._watch.steps(trainer.round(number, soft_labels, steps))):
            session.wait(lambda: not outbox.full, "room in the server's window")
            if outbox.needs(step):
                outbox.add(step, self._encode(opened, "train", step, batch))
            self._say("training", number, step + 1, steps, trainer.loss)
            session.drain()
        self._store.save(self._spec, self._cut, number, trainer)
        sent = outbox.published + sum(map(len, self._packed_weights(opened)))
        self._sent.batches += steps
        self._sent.bytes += sent
        digest = trainer.digest()
        done = RoundDone(
            run=opened.run,
            round=number,
            attempt=opened.attempt,
            digest=digest,
            batches=steps,
            bytes=sent,
            loss=trainer.loss,
            accuracy=trainer.accuracy,
            seconds=time.monotonic() - started,
        )

        def say_done() -> None:
            for payload in self._packed_weights(opened):
                publish_packed(session.link, session.topic("weights"), payload)
            publish_packed(session.link, session.topic("round-done"), done.encode())

        session.finish_round(say_done)
        self._say("waiting", number, steps, steps, trainer.loss)
        session.wait(lambda: self._is_committed(opened, digest), f"the commit of round {number}")
        self._store.commit(number)
        if not opened.participants[session.device].weights:
            self._position = number  # else the server may have given it other weights
        log.info("round %d: committed, exit loss %.4f", number, trainer.loss)
        self._reconsider(number)

    def _steps(self, opened: RoundOpen, samples: int) -> int:
        """Batches of a phase: as many as the server expects, if this device has other pictures by now."""
        mine = opened.participants[self._session.device]
        if mine.samples != samples:
            log.warning(
                "round %d began when this device had %d pictures; with %d it goes on for the same %d batches",
                opened.round, mine.samples, samples, mine.steps,
            )  # fmt: skip
        return mine.steps

    def _soft_labels(self, opened: RoundOpen) -> SoftLabels | None:
        """What the trunk answered to this device's pictures of an earlier round, where the server has it."""
        mine = opened.participants[self._session.device]
        number = mine.soft_labels
        if not number or mine.samples != self._trainer.samples:
            return None
        rows = rows_a_round(self._spec, self._trainer.samples)
        return self._session.fetch_soft_labels(
            SoftLabelsAssembler(opened.run, opened.attempt, number, rows, self._spec.num_classes)
        )

    def _packed_weights(self, opened: RoundOpen) -> Iterator[bytes]:
        """The client network as messages, where the server has asked for it."""
        if not opened.participants[self._session.device].weights:
            return iter(())
        return pack_weights(opened.run, opened.round, opened.attempt, self._trainer.weights())

    def _reconsider(self, number: int) -> None:
        """Ask for another cut, where the rounds so far call for one."""
        wish = self._watch.end_round(number, self._cut)
        if wish is not None:
            if self._capability is not None:
                self._capability = replace(self._capability, reason=wish.reason[:1000])
            self._session.introduce(next_cut=wish.cut, capability=self._capability)

    def _evaluate(self, opened: RoundOpen) -> None:
        session, trainer = self._session, self._trainer
        outbox = self._open_outbox(opened, "evaluate")
        steps = self._steps(opened, trainer.held_out)
        for step, batch in enumerate(trainer.evaluate(steps)):
            session.wait(lambda: not outbox.full, "room in the server's window")
            if outbox.needs(step):
                outbox.add(step, self._encode(opened, "evaluate", step, batch))
            self._say("evaluating", opened.round, step + 1, steps, trainer.loss)
            session.drain()
        session.wait(lambda: outbox.empty, "the server to evaluate")

    def _open_outbox(self, opened: RoundOpen, phase: Phase) -> Outbox:
        session = self._session
        session.outbox = outbox = Outbox(session.link, session.topic("features"), self._spec, opened, phase)
        if session.ack is not None:
            outbox.acknowledge(session.ack)
        return outbox

    def _encode(self, opened: RoundOpen, phase: Phase, step: int, batch: CutBatch) -> bytes:
        classes = self._spec.num_classes
        answers: dict[str, bytes] = {}
        if isinstance(batch, ExitBatch):
            answers["exit_labels"] = encode_labels(batch.exit_labels, classes)
            answers["exit_entropy"] = batch.exit_entropy.astype("<f2").tobytes()
        return Features(
            run=opened.run,
            round=opened.round,
            attempt=opened.attempt,
            phase=phase,
            step=step,
            features=encode_tensor(self._spec.codec, batch.features),
            labels=encode_labels(batch.labels, classes),
            **answers,
        ).encode()

    def _is_committed(self, opened: RoundOpen, digest: str) -> bool:
        """Whether the round counts with this device in it; Superseded when it counts without.

        Only words of the same attempt matter: a server that lost its last round commits it once more.
        """
        plan, commit = self._session.plan, self._session.commit
        attempt, mine = (opened.run, opened.attempt), (opened.round, digest)
        if (
            plan is not None
            and (plan.run, plan.attempt) == attempt
            and (plan.committed, plan.trained) == mine
        ):
            return True
        if commit is None or (commit.run, commit.attempt) != attempt or commit.round < opened.round:
            return False
        if (commit.round, commit.digests.get(self._session.device)) == mine:
            return True
        raise Superseded

    def _say(self, doing: str, number: int, step: int = 0, steps: int = 0, loss: float | None = None) -> None:
        outbox = self._session.outbox
        under_way = outbox.published if outbox is not None and doing == "training" else 0
        batches = self._sent.batches + (step if doing == "training" else 0)
        self._session.say(
            doing, number, step, steps, loss, batches=batches, bytes=self._sent.bytes + under_way
        )
