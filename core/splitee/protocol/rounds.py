# SPDX-License-Identifier: Apache-2.0
"""Messages of a run and its rounds: one class each, validated where it is decoded."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from splitee.protocol.codecs import EncodedTensor
from splitee.protocol.encoding import MAX_ITEMS, JsonMessage, PackedMessage
from splitee.protocol.fields import (
    Count,
    Digest,
    Fraction,
    Loss,
    NonNegative,
    Phase,
    Positive,
    RunPhase,
    TensorName,
    Text,
)


class Participant(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one device does in a phase of a round, and the committed round it continues from.

    Attributes:
        cut: stage after which the device is cut.
        steps: batches that it sends in the phase.
        base: committed round that it continues from.
        samples: images for training (in evaluation held-out ones) by which `steps` is computed.
        weights: it sends its client network before its round-done.
        next_cut: its cut after this round; 0: unchanged.
        soft_labels: round of which the server has soft labels for it; 0: none.
        fresh: BatchNorm's statistics in the network that it continues from have been computed anew.
    """

    cut: Positive
    steps: Count
    base: Count
    samples: Count = 0
    weights: bool = False
    next_cut: Count = 0
    soft_labels: Count = 0
    fresh: bool = False


class RoundOpen(JsonMessage, frozen=True):
    """The phase that is under way.

    Attributes:
        run: id of the run.
        round: number of the round under way, from 1; in all phases but `train` the last committed one.
        attempt: instance of the server that opened it; a later attempt repeats what was not committed.
        phase: the phase.
        participants: number of devices that take part in the phase; each receives its own part.
    """

    run: Text
    round: Count
    attempt: Count
    phase: RunPhase
    participants: Count = 0

    @property
    def batches(self) -> Phase:
        """The phase that the participants' batches belong to."""
        match self.phase:
            case "train" | "statistics":
                return self.phase
            case _:
                return "evaluate"


class Participation(JsonMessage, frozen=True):
    """A device's part in a phase, sent before the phase opens; or the phase continues without the device.

    Attributes:
        run: id of the run.
        round: number of the round, as in the opening.
        attempt: attempt of the opening.
        phase: the phase.
        part: the device's task; none: it no longer takes part in the phase.
        room: batches that may be unacknowledged at first.
    """

    run: Text
    round: Count
    attempt: Count
    phase: Phase
    part: Participant | None = None
    room: Count = 0


class Commit(JsonMessage, frozen=True):
    """A round is final. The assignments, which are published before it, say whose parts count.

    Attributes:
        run: id of the run.
        round: number of the round.
        attempt: attempt of the opening that is committed.
        weights_sha256: SHA-256 of all weights of the fleet; the same seed gives the same value.
    """

    run: Text
    round: Count
    attempt: Count
    weights_sha256: Digest


class Assignment(JsonMessage, frozen=True):
    """The server's instructions for one device, and the device's last commit.

    Attributes:
        run: id of the run.
        attempt: attempt of the server process that sends it.
        instance: instance of the profile that this replies to; 0: the server has restarted and received no
            profile yet.
        cut: stage after which the device is cut from now on.
        committed: the last round that counts for the device; 0: none.
        digest: digest of the client network that the device's next round starts from.
        trained: digest that the device gave in the round-done of its last committed round.
        held: the server holds the client network of `digest`, and the device may request it.
        first: digest of the initial client network at this cut, which a device may request if `held` is
            false; None: the seed gives this network.
        fresh: BatchNorm's statistics in the committed networks have been computed anew.
    """

    run: Text
    attempt: Count
    instance: Count
    cut: Positive
    committed: Count = 0
    digest: Digest | None = None
    trained: Digest | None = None
    held: bool = False
    first: Digest | None = None
    fresh: bool = False


class Ack(JsonMessage, frozen=True):
    """How far the server is with a device's batches.

    Attributes:
        run: id of the run.
        round: number of the round.
        attempt: attempt of the opening.
        phase: phase that the batches belong to.
        step: all batches below this one are trained, or evaluated.
        room: batches that may be unacknowledged from now on; 0: an acknowledgement with more room follows.
        resend: unacknowledged messages may be lost; the device sends them, and round-done, again.
    """

    run: Text
    round: Count
    attempt: Count
    phase: Phase
    step: Count
    room: Count
    resend: bool = False


class Sync(JsonMessage, frozen=True):
    """A device requests a new acknowledgement after a silence, or tensors that the server holds for it.

    Attributes:
        run: id of the run.
        instance: instance of the device's process.
        weights: names of the tensors of its client network that it requests.
        soft_labels: first row of the soft labels that it requests.
    """

    run: Text
    instance: Count
    weights: Annotated[tuple[TensorName, ...], Meta(max_length=10_000)] = ()
    soft_labels: Count | None = None


class Features(PackedMessage, frozen=True):
    """One batch at the cut; in evaluation also what the exit predicts.

    Attributes:
        run: id of the run.
        round: number of the round.
        attempt: attempt of the opening.
        phase: phase of the opening.
        step: number of the batch in the phase, from 0.
        features: output (B, ...) of the stages up to the cut for B images.
        labels: labels of the B images, unsigned and little-endian: one byte each in a run of up to 256
            classes, else two.
        exit_labels: required in evaluation: the exit's predictions, laid out as `labels`.
        exit_entropy: required in evaluation: the normalised entropies 0..1 of the exit, B values in half
            precision, little-endian.
    """

    run: Annotated[str, Meta(max_length=100)]
    round: Count
    attempt: Count
    phase: Phase
    step: Count
    features: EncodedTensor
    labels: bytes
    exit_labels: bytes = b""
    exit_entropy: bytes = b""


class RoundDone(PackedMessage, frozen=True):
    """The device has done its part: trained a round, or computed statistics.

    Attributes:
        run: id of the run.
        round: number of the round.
        attempt: attempt of the opening.
        digest: digest of the client network and its exit after the round; or of the statistics.
        batches: batches sent in the round.
        bytes: bytes of the messages with those batches, each counted once; only servers of earlier releases
            use it.
        loss: mean loss of the exit over the round.
        accuracy: share of the round's images that the exit predicted correctly.
        seconds: duration of the round.
        waited: part of `seconds` in which it waited for room in the server's window.
        phase: phase of the opening.
    """

    run: Annotated[str, Meta(max_length=100)]
    round: Count
    attempt: Count
    digest: Digest
    batches: Count
    bytes: Count
    loss: Loss
    accuracy: Fraction
    seconds: Annotated[float, Meta(ge=0)]
    phase: Phase = "train"
    waited: NonNegative = 0.0


class Weights(PackedMessage, frozen=True):
    """Tensors of a client network and its exit; in `statistics` only the means and variances of BatchNorm.

    Attributes:
        run: id of the run.
        round: round that the weights belong to; 0: the initial weights.
        tensors: tensors by name, in fp32; a scalar has the shape (1).
        attempt: attempt of the opening, or of the server process that sends them.
        phase: phase of the opening.
    """

    run: Annotated[str, Meta(max_length=100)]
    round: Count
    tensors: Annotated[dict[TensorName, EncodedTensor], Meta(max_length=MAX_ITEMS)]
    attempt: Count = 0
    phase: Phase = "train"


class SoftLabelRows(PackedMessage, frozen=True):
    """The trunk's predictions for a device's images, one row per image.

    Attributes:
        run: id of the run.
        round: round in which the device sent the images.
        attempt: attempt of the server process.
        first: number of the first row.
        rows: probabilities (B, classes), in the order in which the batches were sent.
    """

    run: Annotated[str, Meta(max_length=100)]
    round: Count
    attempt: Count
    first: Count
    rows: EncodedTensor
