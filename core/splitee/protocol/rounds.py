"""Every message of a fleet: one class each, validated where it is decoded. Topics are in topics.py."""

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
    Name,
    Phase,
    Positive,
    RunPhase,
    TensorName,
    Text,
)


class Participant(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one device does in a phase of a round, and the committed round it continues from."""

    cut: Positive
    steps: Count
    base: Count
    samples: Count = 0  # pictures that it had when the phase opened, from which `steps` follow
    weights: bool = False  # it sends its client network with its round-done
    next_cut: Count = 0  # where it is cut after this round; 0: as before
    soft_labels: Count = 0  # the round of which the server has soft labels for it; 0: none


class RoundOpen(JsonMessage, frozen=True):
    """`round`, retained: the phase that is under way. `attempt` changes when the server begins it anew."""

    run: Text
    round: Count
    attempt: Count
    phase: RunPhase
    participants: dict[Name, Participant] = msgspec.field(default_factory=dict)


class Commit(JsonMessage, frozen=True):
    """`commit`, retained: round `round` is final. `digests`: of the client networks that count in it."""

    run: Text
    round: Count
    attempt: Count
    digests: dict[Name, Digest]
    weights_sha256: Digest


class Assignment(JsonMessage, frozen=True):
    """`devices/ID/inbox/plan`, retained: the server's word on one device, and its last commit."""

    run: Text
    attempt: Count
    instance: Count  # of the profile this answers
    cut: Positive
    committed: Count = 0
    digest: Digest | None = None  # of the client network that the next round starts from
    trained: Digest | None = None  # of what the device said round-done with
    held: bool = False  # the server has that client network: the device may ask for it


class Ack(JsonMessage, frozen=True):
    """`devices/ID/inbox/ack`: all steps below `step` are trained; `room` batches may be unacknowledged."""

    run: Text
    round: Count
    attempt: Count
    phase: Phase
    step: Count
    room: Positive
    resend: bool = False  # the server may have lost what is under way


class Sync(JsonMessage, frozen=True):
    """`devices/ID/sync`: a device that has heard nothing for long asks for a fresh acknowledgement.

    `weights`: or it asks for these tensors of its client network, which the server holds; `soft_labels`: for
    its soft labels from this row on.
    """

    run: Text
    instance: Count
    weights: Annotated[tuple[TensorName, ...], Meta(max_length=10_000)] = ()
    soft_labels: Count | None = None


class Features(PackedMessage, frozen=True):
    """`devices/ID/features`: one batch at the cut. Evaluation adds what the exit answered."""

    run: Annotated[str, Meta(max_length=100)]
    round: Count
    attempt: Count
    phase: Phase
    step: Count
    features: EncodedTensor
    labels: bytes  # unsigned little-endian, as wide as the number of classes needs
    exit_labels: bytes = b""
    exit_entropy: bytes = b""  # float16, normalised: 0..1


class RoundDone(PackedMessage, frozen=True):
    """`devices/ID/round-done`: the device has trained and durably saved round `round`."""

    run: Annotated[str, Meta(max_length=100)]
    round: Count
    attempt: Count
    digest: Digest
    batches: Count
    bytes: Count
    loss: Loss
    accuracy: Fraction
    seconds: Annotated[float, Meta(ge=0)]


class Weights(PackedMessage, frozen=True):
    """`devices/ID/weights` and its inbox: tensors of a client network and its exit, by their names."""

    run: Annotated[str, Meta(max_length=100)]
    round: Count
    tensors: Annotated[dict[TensorName, EncodedTensor], Meta(max_length=MAX_ITEMS)]
    attempt: Count = 0


class SoftLabelRows(PackedMessage, frozen=True):
    """`devices/ID/inbox/soft-labels`: probabilities (B, classes) of a device's pictures, from row `first` on.

    Rows are in the order in which the device sent its batches in round `round`.
    """

    run: Annotated[str, Meta(max_length=100)]
    round: Count
    attempt: Count
    first: Count
    rows: EncodedTensor
