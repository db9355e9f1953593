"""The server's rounds: opens them, trains the trunk in order, commits them, evaluates what was committed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import torch
from msgspec.structs import replace

from splitee.networks.split import SplitNetwork
from splitee.protocol.fleet import DeviceMetrics, Metrics
from splitee.protocol.rounds import Features, Participant, RoundDone, RoundOpen, Sync, Weights
from splitee.protocol.run_spec import RunSpec
from splitee.training.epochs import steps_a_round
from splitee.training.soft_labels import pack_rows
from splitee.training.state import fleet_digest
from splitee.training.weights import pack_weights
from splitee_server.announcer import Announcer
from splitee_server.learning.client_networks import ClientNetworks
from splitee_server.learning.soft_labels import SoftLabelStore
from splitee_server.learning.strategies.base import Strategy
from splitee_server.members.members import Member, Members
from splitee_server.members.reception import Batch
from splitee_server.release.end_of_run import EndOfRun
from splitee_server.rounds.checkpoints import Checkpoints, Committed
from splitee_server.rounds.deadline import AdaptiveDeadline
from splitee_server.rounds.phase import PhaseUnderWay
from splitee_server.rounds.policy import Policy
from splitee_server.rounds.progress import RunProgress, Standing, Trained
from splitee_server.rounds.report import device_metrics, log_metrics, run_report

log = logging.getLogger(__name__)

EVENTS = 256  # that are handled between two batches, at most: a flood does not keep the trunk from training
FIRST_DEADLINE = 10  # times the floor: for a first round, of which nothing is known yet
REMIND_EVERY = 30.0  # seconds between lines that say who is waited for


class Coordinator:
    """One run, from its last committed round to its end. Events come in through the on_... methods."""

    def __init__(
        self,
        spec: RunSpec,
        network: SplitNetwork,
        strategy: Strategy,
        members: Members,
        announcer: Announcer,
        store: Checkpoints,
        policy: Policy,
        release: EndOfRun,
        *,
        attempt: int,
        pump: Callable[[float], bool],
        rejected: Callable[[], int],
        evaluated: Callable[[Metrics], None],
    ) -> None:
        """`pump`: handle one event of the link, waiting at most so many seconds; False when none came."""
        self._spec = spec
        self._network = network
        self._strategy = strategy
        self._members = members
        self._announce = announcer
        self._store = store
        self._policy = policy
        self._release = release
        self._pump = pump
        self._rejected = rejected
        self._evaluated = evaluated
        self._deadline = AdaptiveDeadline(policy.floor)
        self._clients = ClientNetworks(spec, network, strategy)
        self._soft_labels = SoftLabelStore(spec)
        self._attempt = attempt
        self._phase = self._open("gather", 0, {}, announce=False)
        self._losses: dict[str, tuple[float, float | None]] = {}  # of exit and trunk, in the last round
        self._metrics: Metrics | None = None  # of the committed round
        self._committed = 0
        self._weights_sha256 = ""
        self._duplicates = 0
        self._trained = Trained()
        self._seconds = 0.0  # of earlier processes
        self._started = time.monotonic()
        self._reminded = self._started

    def run(self) -> dict[str, Any]:
        """Serve the run to its end; returns the report."""
        self._resume()
        self._announce.run(self._spec)
        self._gather()
        if self._committed and self._metrics is None:
            self._metrics = self._evaluate()
        while self._committed < self._spec.rounds:
            self._train(self._committed + 1)
            self._metrics = self._evaluate()
        report = self._report()
        self._store.write_report(report)
        if self._spec.release:
            self._hand_over()
        self._phase = self._open("finished", self._committed, {})
        log.info(
            "run %s finished: %d rounds, weights %s", self._spec.run, self._committed, self._weights_sha256
        )
        return report

    # Events

    def on_admitted(self, member: Member) -> None:
        """A device has joined, or a new process of it."""
        self._strategy.join(member.device, member.cut)
        self._soft_labels.count(member.device, member.train_samples)
        self._give_average(member)
        if not self._spec.class_names and self._members.class_names:
            self._spec = replace(self._spec, class_names=self._members.class_names)
            self._announce.run(self._spec)
        self._send_plan(member)
        self.on_sync(member.device)

    def on_sync(self, device: str) -> None:
        """A device asks where the server stands with it."""
        if device in self._phase.schedule:
            self._acknowledge(device, resend=True)
        elif device in self._members:
            self._send_plan(self._members[device])

    def on_wish(self, device: str, wish: Sync) -> None:
        """A device asks for what the server holds for it: tensors of its client network, or soft labels."""
        run, attempt = self._spec.run, self._attempt
        if tensors := self._clients.some(device, wish.weights):
            weights = pack_weights(run, self._committed, attempt, tensors)
            self._announce.deliver(device, "inbox/weights", weights)
        labels = self._soft_labels.of(device)
        if wish.soft_labels is not None and labels is not None:
            rows = pack_rows(run, attempt, labels, wish.soft_labels)
            self._announce.deliver(device, "inbox/soft-labels", rows)

    def on_weights(self, device: str, message: Weights) -> None:
        """Tensors of a client network, before its device's round-done."""
        if device in self._phase.arrivals and self._phase.is_current(message.round, message.attempt, "train"):
            self._phase.arrivals[device].add(message)
            self._phase.progressed = time.monotonic()

    def on_features(self, device: str, message: Features, batch: Batch) -> None:
        """A batch; one of an older attempt is dropped: its device learns of this one by itself."""
        schedule = self._phase.schedule
        if (
            not self._phase.is_current(message.round, message.attempt, message.phase)
            or device not in schedule
        ):
            return
        if schedule.offer(device, message.step, batch) == "duplicate":
            self._duplicates += 1
            self._acknowledge(device)

    def on_round_done(self, device: str, message: RoundDone) -> None:
        """Raises MalformedMessage: the device's weights are not those it speaks of."""
        current = self._phase.is_current(message.round, message.attempt, "train")
        if current and device in self._phase.schedule:
            arrival = self._phase.arrivals.get(device)
            if arrival is not None and arrival.missing:
                self._acknowledge(device, resend=True)
                return
            if arrival is not None:
                arrival.check(message.digest)
            self._phase.done[device] = message
        elif device in self._members and message.round <= self._committed:
            self._send_plan(self._members[device])  # it has missed the commit

    def on_claim(self) -> None:
        """Another server asks whether this one lives."""
        self._beat(now=True)

    def on_reconnected(self) -> None:
        """The link is up again; the broker, or what was under way, may have been lost."""
        self._announce.again()
        self._beat()
        for device in self._phase.opened.participants:
            self.on_sync(device)

    def progress(self) -> RunProgress:
        """Where the run stands now."""
        phase, waiting_for = self._phase, self._waiting_for()
        gathering = phase.opened.phase == "gather"
        missing = self._wanted() - len(self._members.online()) if gathering else len(waiting_for)
        return RunProgress(
            spec=self._spec,
            phase=phase.opened.phase,
            committed=self._committed,
            devices=tuple(
                Standing(member.device, member.cut, member.online, member.totals.batches, member.totals.bytes)
                for member in self._members
            ),
            waiting_for=waiting_for,
            missing=max(missing, 0),
            waited=time.monotonic() - phase.progressed if missing > 0 else 0.0,
            queued=phase.schedule.held(),
            duplicates=self._duplicates,
            trained=replace(self._trained),
            metrics=self._metrics,
        )

    # Rounds

    def _resume(self) -> None:
        stored = self._store.load()
        if stored is None:
            return
        self._committed = stored.round
        self._weights_sha256 = stored.weights_sha256
        self._duplicates = stored.duplicates
        self._seconds = stored.seconds
        self._strategy.load(stored.strategy)
        self._clients.load(stored.clients)
        self._soft_labels.load(stored.soft_labels)
        self._members.restore(stored.members)
        self._members.class_names = stored.class_names
        self._spec = replace(self._spec, class_names=stored.class_names)
        for member in self._members:
            self._soft_labels.count(member.device, member.train_samples)
            self._send_plan(member)
        self._announce_commit()
        self._metrics = self._store.evaluated(self._committed)
        if self._metrics is not None:
            self._announce.metrics(self._metrics)
            self._evaluated(self._metrics)
        log.info("resuming run %s after round %d", self._spec.run, self._committed)

    def _gather(self) -> None:
        """Wait for the devices that the next round needs; a run that is over needs none."""
        if self._committed >= self._spec.rounds and self._metrics is not None:
            return
        if len(self._members.online()) < self._wanted():
            self._phase = self._open("gather", self._committed, {})
            self._serve(lambda: len(self._members.online()) >= self._wanted())

    def _wanted(self) -> int:
        """Devices that must be online before a round opens."""
        if self._committed == 0:
            return self._policy.devices
        return self._policy.quorum if self._policy.missing == "skip" else len(self._members)

    def _taking_part(self) -> list[Member]:
        """Who is in the next phase: under `wait` every device, online or not."""
        return self._members.online() if self._policy.missing == "skip" else list(self._members)

    def _train(self, number: int) -> None:
        """Open a round, train what comes, commit."""
        if self._policy.missing == "skip":
            self._gather()
        participants = {member.device: self._part_in(number, member) for member in self._taking_part()}
        self._phase = self._open("train", number, participants)
        self._serve(lambda: self._phase.is_over)
        if len(self._phase.done) == len(participants):
            self._deadline.note(time.monotonic() - self._phase.started)
        self._commit(number)

    def _part_in(self, number: int, member: Member) -> Participant:
        next_cut = member.next_cut if number < self._spec.rounds else 0  # a new exit would learn nothing more
        soft_labels = self._soft_labels.of(member.device)
        return Participant(
            member.cut,
            steps_a_round(self._spec, member.train_samples),
            member.committed,
            member.train_samples,
            weights=(
                self._spec.client_averaging != "none"
                or bool(next_cut)
                or (self._spec.release and number == self._spec.rounds)
            ),
            next_cut=next_cut,
            soft_labels=soft_labels.round if soft_labels else 0,
        )

    def _commit(self, number: int) -> None:
        """Aggregate, save durably, and only then tell the devices."""
        for device, done in self._phase.done.items():
            self._members[device].end_round(done, self._phase.schedule.next_step(device))
            self._losses[device] = done.loss, self._phase.trunk_loss(device)
        taken = [self._members[device] for device in self._phase.done]
        self._soft_labels.end_round(number, self._phase.done)
        self._strategy.aggregate({member.device: member.train_samples for member in taken})
        self._committed = number
        self._replace_clients(taken)
        self._weights_sha256 = fleet_digest(self._strategy.weights(), self._members.digests())
        self._store.save(
            Committed(
                round=number,
                strategy=self._strategy.state(),
                clients=self._clients.state(),
                members=[member.durable() for member in self._members],
                class_names=self._members.class_names,
                weights_sha256=self._weights_sha256,
                duplicates=self._duplicates,
                seconds=self._elapsed(),
                soft_labels=self._soft_labels.state(),
            )
        )
        for member in self._members:
            if member.committed == number:
                self._send_plan(member)
        self._announce_commit()
        log.info("round %d of %d: committed by %d devices", number, self._spec.rounds, len(taken))

    def _replace_clients(self, taken: list[Member]) -> None:
        """Average client networks, move cuts; the devices start their next round from what comes of it."""
        came = {device: self._phase.arrivals[device].tensors for device in self._phase.arrivals}
        cuts = {member.device: member.cut for member in self._members}
        self._clients.end_round(came, cuts, {member.device: member.train_samples for member in taken})
        asked = {member.device: self._phase.opened.participants[member.device].next_cut for member in taken}
        moves = {device: cut for device, cut in sorted(asked.items()) if cut}
        self._clients.move(moves, cuts)
        for device, cut in moves.items():
            log.info("%s is cut at %d now, before at %d", device, cut, cuts[device])
            self._members[device].move(cut)
        for member in self._members:
            self._hold(member)

    def _give_average(self, member: Member) -> None:
        """A device that comes late starts from the average of its cut, where there is one."""
        if not member.committed:
            self._clients.adopt(member.device, member.cut, {m.device: m.cut for m in self._members})
            self._hold(member)

    def _hold(self, member: Member) -> None:
        if member.device in self._clients:
            member.committed, member.digest = self._committed, self._clients.digest(member.device)

    def _evaluate(self) -> Metrics:
        """Score the committed round on the devices' held-out pictures."""
        participants = {
            member.device: member.in_evaluation()
            for member in self._taking_part()
            if member.committed == self._committed and member.held_out_samples
        }
        self._phase = self._open("evaluate", self._committed, participants)
        self._serve(lambda: self._phase.is_over)
        metrics = Metrics(
            run=self._spec.run,
            round=self._committed,
            rounds=self._spec.rounds,
            seconds=self._elapsed(),
            devices={member.device: self._figures(member) for member in self._members},
            batches_trained=sum(member.totals.batches for member in self._members),
            duplicates_dropped=self._duplicates,
        )
        self._store.add_metrics(metrics)
        self._announce.metrics(metrics)
        self._evaluated(metrics)
        log_metrics(metrics)
        return metrics

    def _hand_over(self) -> None:
        """Export what was trained, and wait for the devices that are online to take their models."""
        committed = self._store.load()
        assert committed is not None
        scores = self._phase.scores
        self._phase = self._open("release", self._committed, {})
        self._release.start(self._spec, committed, scores)
        self._serve(lambda: self._release.is_exported)
        self._release.offer()
        until = time.monotonic() + self._policy.release
        self._serve(lambda: not self._waiting_for() or time.monotonic() > until)
        if self._release.missing:
            log.warning(
                "no word of their models from %s: `splitee release` brings them later",
                ", ".join(self._release.missing),
            )

    def _open(
        self, phase: Any, number: int, participants: dict[str, Participant], *, announce: bool = True
    ) -> PhaseUnderWay:
        opened = RoundOpen(
            run=self._spec.run, round=number, attempt=self._attempt, phase=phase, participants=participants
        )
        arrivals = {device: self._clients.arrival(p.cut) for device, p in participants.items() if p.weights}
        order = self._strategy.order if phase == "train" else "any"
        under_way = PhaseUnderWay(opened, self._spec.rounds, order, self._spec.window, arrivals)
        if announce:
            self._announce.round(opened)
            self._announce.beat(under_way.doing, under_way.late(), self._rejected(), now=True)
        return under_way

    def _serve(self, condition: Callable[[], bool]) -> None:
        """Handle events and train what is ready, until `condition`."""
        while not condition():
            for _ in range(EVENTS):
                if not self._pump(0):
                    break
            taken = self._phase.schedule.take()
            if taken is not None:
                self._work(*taken)
            elif not condition():
                self._pump(0.5)
            self._beat()
            self._mind_the_missing()

    def _work(self, device: str, step: int, batch: Batch) -> None:
        phase = self._phase
        features = torch.from_numpy(batch.features)
        if phase.opened.phase == "train":
            started, number = time.monotonic(), phase.opened.round
            loss, logits = self._strategy.train(
                device,
                features,
                torch.from_numpy(batch.labels),
                round_number=number,
                step=step,
                steps=phase.opened.participants[device].steps,
            )
            phase.loss_sums[device] += loss
            self._soft_labels.add(device, number, logits)
            self._trained.add(len(batch.labels), time.monotonic() - started)
        elif batch.exit_labels is not None and batch.exit_entropy is not None:
            answers = self._strategy.predict(device, features).numpy()
            phase.scores[device].add(
                batch.labels, batch.exit_labels, batch.exit_entropy, answers, self._spec.threshold
            )
        phase.progressed = time.monotonic()
        self._acknowledge(device)

    # Who is missing

    def _mind_the_missing(self) -> None:
        """Say who is waited for; at the deadline go on without them, where that is the policy."""
        now, phase = time.monotonic(), self._phase
        if now - max(phase.progressed, self._reminded) >= REMIND_EVERY:
            self._reminded = now
            online = len(self._members.online())
            whom = ", ".join(self._waiting_for()) or f"{self._wanted() - online} more devices"
            log.info("%s: waiting for %s (%d online)", phase.doing, whom, online)
        if self._policy.missing == "skip" and phase.opened.phase in ("train", "evaluate"):
            if self._committed:
                limit, since = self._deadline.seconds(), phase.started
            else:  # nothing is known of how long a round takes: only who stands still is skipped
                limit, since = FIRST_DEADLINE * self._policy.floor, phase.progressed
            if now - since > limit:
                self._skip(phase.late(), limit)

    def _skip(self, missing: tuple[str, ...], limit: float) -> None:
        left = len(self._phase.opened.participants) - len(missing)
        if not missing or (self._phase.opened.phase == "train" and left < self._policy.quorum):
            return
        self._phase.go_on_without(missing)
        for device in missing:
            self._members[device].online = False  # until it is heard of again
        self._announce.round(self._phase.opened)
        log.warning("%s: going on without %s after %.0f s", self._phase.doing, ", ".join(missing), limit)

    def _waiting_for(self) -> tuple[str, ...]:
        if self._phase.opened.phase == "release":
            return tuple(d for d in self._release.missing if self._members[d].online)
        if self._phase.opened.phase == "gather":
            return tuple(member.device for member in self._members if not member.online)
        return self._phase.late()

    # Words

    def _send_plan(self, member: Member) -> None:
        self._announce.plan(member, held=member.device in self._clients)

    def _acknowledge(self, device: str, *, resend: bool = False) -> None:
        step, room = self._phase.schedule.next_step(device), self._room(device)
        self._announce.ack(device, self._phase.opened, step, room, resend=resend)

    def _announce_commit(self) -> None:
        digests = self._members.digests(self._committed)
        self._announce.commit(self._committed, digests, self._weights_sha256)

    def _room(self, device: str) -> int:
        """Batches the device may have unacknowledged: its share of the memory for waiting features."""
        shape = self._network.stages[self._members[device].cut - 1].feature_shape
        batch_bytes = 4 * self._spec.batch_size * torch.Size(shape).numel()
        share = self._policy.memory // (batch_bytes * max(len(self._phase.opened.participants), 1))
        return max(1, min(self._spec.window, share))

    def _beat(self, *, now: bool = False) -> None:
        self._announce.beat(self._phase.doing, self._waiting_for(), self._rejected(), now=now)

    def _elapsed(self) -> float:
        return self._seconds + time.monotonic() - self._started

    def _figures(self, member: Member) -> DeviceMetrics:
        stage = self._network.stages[member.cut - 1].name
        losses, score = self._losses.get(member.device), self._phase.scores.get(member.device)
        return device_metrics(member, stage, losses, score)

    def _report(self) -> dict[str, Any]:
        assert self._metrics is not None
        members = list(self._members)
        return run_report(self._spec, self._metrics, members, self._weights_sha256, self._rejected())
