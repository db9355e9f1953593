# SPDX-License-Identifier: Apache-2.0
"""The current phase of a round: what has arrived, what is missing, and since when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping

import msgspec
from msgspec.structs import replace
from torch import Tensor

from splitee.clock import Clock
from splitee.inference.uncertainty import Array
from splitee.protocol.cut_batch import CutBatch
from splitee.protocol.fields import RunPhase
from splitee.protocol.rounds import Participant, RoundDone, RoundOpen, Weights
from splitee.training.weights import WeightsAssembler
from splitee_server.rounds.batch_order import BatchOrder, OfferResult, Order
from splitee_server.rounds.evaluation import Score
from splitee_server.rounds.pace import Arrivals
from splitee_server.rounds.waves import Waves
from splitee_server.rounds.windows import Windows

PHASE_DESCRIPTIONS: Mapping[RunPhase, str] = {
    "gather": "gathering devices",
    "train": "training",
    "statistics": "taking statistics",
    "evaluate": "evaluating",
    "release": "releasing models",
    "finished": "finished",
}


STALLED = 30.0  # seconds without a byte after which a device is not sending; a dead link is noticed by then
FAILING_AFTER = 5  # batches
REQUEST_EVERY = 5.0  # seconds
MAX_LOGITS = 1 << 23  # logits of exits that are kept of an evaluation, and as many of trunks: 32 MiB together


class DeviceProgress(msgspec.Struct, frozen=True, array_like=True):
    """A rank's progress with the batches of one device.

    Attributes:
        step: all below it have been taken.
        loss: of the trunk, summed over them.
        rejected: of them, those that could not be worked on.
        untrainable: of these, those that gave no finite loss or gradient.
        waits: the next one has arrived, or the device has no window for it.
    """

    step: int
    loss: float
    rejected: int
    untrainable: int
    waits: bool


class Phase:
    """A phase (gathering, training, evaluating or releasing) with the messages of its participants."""

    def __init__(
        self,
        opened: RoundOpen,
        participants: Mapping[str, Participant],
        *,
        order: Order,
        window: int,
        windows: Windows,
        num_classes: int,
        clock: Clock,
        assemblers: Mapping[str, WeightsAssembler] | None = None,
        is_over: Callable[[], bool] | None = None,
        waves: Waves | None = None,
        remote: Collection[str] = (),
    ) -> None:
        """A phase of training, statistics or evaluation is over when its participants have done their parts.

        Args:
            order: of the batches of different devices.
            window: batches of a device that may be held before their turn.
            windows: batches of each device that may be on their way.
            assemblers: for the client networks, or their statistics, of the devices that send theirs.
            is_over: for the other phases.
            waves: which devices are served at a time; None: all at once.
            remote: participants whose batches go to another rank of the server.
        """
        self.opened = opened
        self.participants = dict(participants)
        self.windows = windows
        self._clock = clock
        self._requested: dict[str, float] = {}  # when missing messages were last requested, by device
        self._assemblers = dict(assemblers or {})
        self._is_over = is_over  # no closure over `self`: a cycle would keep its networks for many rounds
        steps = {device: participant.steps for device, participant in participants.items()}
        self._waves = waves
        waits = set(steps).difference(waves.served()) if waves is not None else ()
        self._batches: BatchOrder[CutBatch] = BatchOrder(order, steps, window, waits=waits, remote=remote)
        self._unfinished = {device for device in steps if opened.phase != "evaluate" or steps[device]}
        self._losses = dict.fromkeys(participants, 0.0)
        self._rejected: Counter[str] = Counter()
        self._untrainable: Counter[str] = Counter()
        self._remote = frozenset(remote)
        self._ready: set[str] = set()  # of these, those that wait for their turn or a window
        self.done: dict[str, RoundDone] = {}
        self._paces: dict[str, float] = {}
        room = MAX_LOGITS // (num_classes * max(1, opened.participants))
        self.scores = {device: Score(room=room) for device in participants}
        self._arrived: dict[str, float] = {}  # when a part of an incomplete message arrived
        self.started = self.progressed_at = clock()
        self.waiting_since = self.started  # start of the time that late devices have
        self.extended_at = self.started  # when the deadline was last extended, as a device was sending
        self._arrivals = {device: Arrivals(self.started) for device in steps} if self.kind == "train" else {}

    @property
    def kind(self) -> RunPhase:
        return self.opened.phase

    def is_over(self) -> bool:
        return self._is_over() if self._is_over is not None else not self._unfinished

    def prolong(self, is_over: Callable[[], bool]) -> None:
        """The phase goes on until another condition is met."""
        self._is_over = is_over

    def is_current(self, number: int, attempt: int, kind: str) -> bool:
        """Whether a message belongs to this phase."""
        return (number, attempt, kind) == (self.opened.round, self.opened.attempt, self.opened.phase)

    def __contains__(self, device: str) -> bool:
        return device in self._batches

    @property
    def begun_with(self) -> Collection[str]:
        """The participants at the opening of the phase; some may have been dropped since."""
        return self.scores.keys()

    def has_begun_with(self, device: str) -> bool:
        """Whether a device was a participant at the opening of the phase; it may have been dropped since."""
        return device in self.scores

    # What comes

    def offer(self, device: str, step: int, batch: CutBatch) -> OfferResult:
        """Keep a batch that has arrived until its turn, if it is new and within the window."""
        offer = self._batches.offer(device, step, batch)
        if offer == "taken" and device in self._arrivals:
            self._arrivals[device].came(self._clock())
        return offer

    def next_expected(self, device: str) -> int:
        """The step after the device's last batch that has arrived."""
        return self._batches.next_expected(device)

    def lacks_before(self, device: str, steps: int) -> bool:
        """Whether batches below a step are expected by this rank and have not arrived."""
        return device not in self._remote and self.next_expected(device) < steps

    def add_weights(self, device: str, message: Weights) -> None:
        """Add tensors of a client network, or its statistics. Raises MalformedMessage."""
        if device in self._assemblers and self.is_current(message.round, message.attempt, message.phase):
            self._assemblers[device].add(message)
            self.progressed_at = self._arrived[device] = self._clock()

    def note_arriving(self, device: str) -> None:
        """Note that part of a message has arrived from a device, whose link may be slow."""
        if device in self:
            self._arrived[device] = self._clock()

    def is_sending(self, device: str) -> bool:
        """Whether parts of an incomplete message have arrived recently."""
        return device in self._arrived and self._clock() - self._arrived[device] <= STALLED

    def note_done(self, device: str, message: RoundDone) -> bool:
        """Note that a device has done its part; False: tensors of its client network are missing.

        Raises:
            MalformedMessage: the tensors do not have the digest that it names.
        """
        assembler = self._assemblers.get(device)
        if assembler is not None and assembler.missing:
            return False
        if assembler is not None:
            assembler.check(message.digest)
        self.done[device] = message
        if device in self._arrivals and device not in self._paces:
            steps = self.participants[device].steps
            self._paces[device] = self._arrivals[device].pace(message, steps, self._clock())
        self._note_part(device)
        return True

    def may_request(self, device: str) -> bool:
        """Whether to request missing messages from a device now; True at most once in REQUEST_EVERY.

        Without this limit, a device that sends unusable messages would get requests as fast as it replies.
        """
        now = self._clock()
        if now - self._requested.get(device, -REQUEST_EVERY) < REQUEST_EVERY:
            return False
        self._requested[device] = now
        return True

    # What is done with it

    def take(self) -> tuple[str, int, CutBatch] | None:
        """The next batch in order; None if it has not arrived."""
        taken = self._batches.take()
        if taken is not None:
            self._note_part(taken[0])
            if taken[0] in self._arrivals:
                self._arrivals[taken[0]].taken(self._clock())
        return taken

    def leaving(self) -> Iterator[str]:
        """Devices that have done their part and leave; others take their place, with a new deadline."""
        if self._waves is not None:
            for device in self._waves.leaving(self._has_finished):
                self.waiting_since = self._clock()
                yield device
            for device in self._waves.served():
                self._batches.admit(device)

    def _has_finished(self, device: str) -> bool:
        """Whether all of a device's batches have been taken, too: it may report its end before that."""
        return device in self.done and self.next_step(device) == self.participants[device].steps

    def note_trained(self, device: str, loss: float) -> None:
        """Note that the trunk has been trained on a batch."""
        self._losses[device] += loss
        self.progressed_at = self._clock()

    def note_observed(self) -> None:
        """Note that statistics have been taken of a batch."""
        self.progressed_at = self._clock()

    def open_step(self, step: int) -> None:
        """With joint steps of ranks: permit batches up to this step, and none of later ones."""
        self._batches.open_step(step)

    def is_step_complete(self) -> bool:
        """Whether all batches up to the last opened step have been taken, by any rank."""
        return self._batches.is_step_complete()

    def has_batches_left(self) -> bool:
        """Whether a participant's batch has not been taken."""
        return self._batches.has_missing()

    def rejected(self, device: str) -> int:
        """Number of a device's batches that could not be processed."""
        return self._rejected[device]

    def note_rejected(self, device: str) -> None:
        """Note a batch that could not be processed."""
        self._rejected[device] += 1
        self.progressed_at = self._clock()

    def note_untrainable(self, device: str) -> None:
        """Note a batch that gave no finite loss or gradient; it is also noted as rejected."""
        self._untrainable[device] += 1

    def progress(self, device: str) -> DeviceProgress:
        """This rank's progress with a device, for the leading rank."""
        return DeviceProgress(
            self.next_step(device),
            self._losses[device],
            self._rejected[device],
            self._untrainable[device],
            self._waits(device),
        )

    def note_remote_progress(self, device: str, progress: DeviceProgress) -> None:
        """Note the progress of the rank that has this device's batches."""
        self._batches.advance(device, progress.step)
        self._losses[device], self._rejected[device] = progress.loss, progress.rejected
        self._untrainable[device] = progress.untrainable
        (self._ready.add if progress.waits else self._ready.discard)(device)
        self._note_part(device)
        self.progressed_at = self._clock()

    def failing(self) -> list[str]:
        """The participants with at least FAILING_AFTER batches that gave no finite loss or gradient."""
        return [
            device for device, count in self._untrainable.items() if count >= FAILING_AFTER and device in self
        ]

    def note_evaluated(
        self, device: str, batch: CutBatch, trunk: Array, threshold: float, exit_logits: Array | None = None
    ) -> None:
        """Note the evaluation of a batch.

        Args:
            trunk: the trunk's logits (B, classes).
            exit_logits: the exit's, if they are known here.
        """
        score, labels = self.scores[device], batch.labels
        if batch.exit_labels is not None and batch.exit_entropy is not None:
            score.add(labels, batch.exit_labels, batch.exit_entropy, trunk.argmax(axis=1), threshold)
            if exit_logits is not None:
                score.keep_logits(exit_logits, trunk, labels)
        self.progressed_at = self._clock()

    # Where it stands

    def next_step(self, device: str) -> int:
        """All of the device's steps below this one have been taken."""
        return self._batches.next_step(device)

    def is_ahead(self, device: str) -> bool:
        """Whether the acknowledgement of a device's last batch may wait without slowing the device.

        It may if more than half of the batches that the device may have on their way are here. If all its
        remaining batches are here, one acknowledgement per half a room of batches suffices.
        """
        held, room = self._batches.held_of(device), self.windows.room(device)
        taken = self.next_step(device)
        if 0 < held == self.participants[device].steps - taken:
            return taken % max(1, room // 2) > 0
        return 2 * held > room

    def waiting_batches(self) -> int:
        """Number of batches that have arrived and not been taken."""
        return self._batches.held()

    def weights(self, device: str) -> Mapping[str, Tensor] | None:
        """The client network, or its statistics, that a device has sent; None: it sends none."""
        assembler = self._assemblers.get(device)
        return None if assembler is None else assembler.tensors

    def pace(self, device: str) -> float:
        """Seconds per batch of a device that has ended its round of training."""
        return self._paces[device]

    def unfinished(self) -> tuple[str, ...]:
        """The participants that have not done their part."""
        return tuple(sorted(self._unfinished))

    def lacks(self, device: str) -> bool:
        """Whether a message is missing that a participant must have sent, or must send next."""
        return device in self._unfinished and self._batches.lacks(device)

    def late(self) -> tuple[str, ...]:
        """The participants behind whose next message has not arrived.

        The others wait for their turn or for a window.
        """
        return tuple(device for device in self.unfinished() if self._is_late(device))

    def _is_late(self, device: str) -> bool:
        if self._batches.is_finished(device):
            return True  # its round-done is not here
        return device not in self._ready if device in self._remote else not self._waits(device)

    def _waits(self, device: str) -> bool:
        """Whether a device that has batches left waits for its turn, or for a window."""
        return self._batches.has_next(device) or not self.windows.room(device)

    def _note_part(self, device: str) -> None:
        """Count a participant as done, once its batches are taken and its round-done has arrived."""
        if self._batches.is_finished(device) and (self.kind == "evaluate" or device in self.done):
            self._unfinished.discard(device)

    def go_on_without(self, devices: tuple[str, ...]) -> None:
        """Drop missing participants, with what has come of them; the others get a new deadline.

        They may have waited for the missing ones.
        """
        self.started = self.waiting_since = self.progressed_at = self._clock()
        for device in devices:
            self._batches.drop(device)
            self._unfinished.discard(device)
            if self._waves is not None:
                self._waves.drop(device)
            self.done.pop(device, None)
            self._assemblers.pop(device, None)
            self.scores[device] = Score()
            del self.participants[device]
        self.opened = replace(self.opened, participants=len(self.participants))

    def trunk_loss(self, device: str) -> float | None:
        """Mean over the batches trained so far."""
        trained = self.trained_batches(device)
        return self._losses[device] / trained if trained else None

    def trained_batches(self, device: str) -> int:
        """Batches that the trunk has been trained on so far."""
        return self.next_step(device) - self._rejected[device]
