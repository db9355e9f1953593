"""Every message of a fleet: one class each, validated where it is decoded. Topics are in topics.py."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from splitee.codecs import EncodedTensor
from splitee.errors import MalformedMessage
from splitee.wire import MAX_ITEMS, JsonMessage, PackedMessage

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")]
Text = Annotated[str, Meta(max_length=1000)]
Count = Annotated[int, Meta(ge=0, le=1 << 62)]
Positive = Annotated[int, Meta(ge=1, le=1 << 62)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Loss = Annotated[float, Meta(ge=0, le=1e30)]  # neither infinite nor NaN
NonNegative = Annotated[float, Meta(ge=0, le=1e15)]
TensorName = Annotated[str, Meta(max_length=300)]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
ClassNames = Annotated[
    tuple[Annotated[str, Meta(min_length=1, max_length=200)], ...], Meta(max_length=10_000)
]

Codec = Annotated[str, Meta(pattern=r"^(fp32|fp16|int8)(\+zstd)?\Z")]
RunCodec = Annotated[str, Meta(pattern=r"^(auto|(fp32|fp16|int8)(\+zstd)?)\Z")]
Phase = Literal["train", "evaluate"]
RunPhase = Literal["gather", "train", "evaluate", "release", "finished"]
Doing = Literal["starting", "waiting", "training", "evaluating", "finished", "serving"]
Strategy = Literal["sequential", "averaging"]
Order = Literal["step", "device"]
ClientAveraging = Literal["none", "same-cut", "layerwise"]
Optimizer = Literal["sgd", "adamw"]
LearningSchedule = Literal["cosine", "constant"]
Augmentation = Literal["none", "flip", "flip-crop"]
Weighting = Literal["samples", "uniform"]


class DeviceStatus(JsonMessage, frozen=True):
    """`devices/ID/status`, retained, also the last will. `instance` tells two processes with one id apart."""

    state: Literal["online", "offline"]
    instance: Count
    doing: Doing = "starting"
    round: Count = 0
    step: Count = 0
    steps: Count = 0
    loss: float | None = None
    batches: Count = 0
    bytes: Count = 0
    rejected: Count = 0  # malformed messages that this process was sent
    temperature: float | None = None  # degrees Celsius, of the hottest sensor
    time: float = 0.0  # seconds since the epoch, by the device's clock


class CutCost(msgspec.Struct, frozen=True):
    """What one cut costs a device: seconds to train, encode and send a batch, bytes on the wire, memory."""

    cut: Positive
    seconds: NonNegative
    bytes: Count
    memory: Count
    fits: bool


class Capability(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a device can do, as its profiler measured it; fields that are None are not known to it."""

    network: Text
    batch_size: Count
    codec: Codec
    machine: Text  # the model, or the CPU
    cores: NonNegative  # that it may use
    threads: Count
    memory: Count | None = None  # bytes that training may take
    upload: NonNegative | None = None  # bytes a second
    round_trip: NonNegative | None = None  # seconds to the broker and back
    reason: Text = ""  # for the cut
    cuts: Annotated[tuple[CutCost, ...], Meta(max_length=1000)] = ()


class Profile(JsonMessage, frozen=True):
    """`devices/ID/profile`, retained: what a device is, and the cut it chose. Publishing it asks to join."""

    protocol: Count
    instance: Count
    version: Text
    cut: Positive
    class_names: ClassNames
    train_samples: Positive
    held_out_samples: Count
    run: Text = ""  # the run its committed state belongs to, if any
    committed: Count = 0  # its last committed round in that run
    next_cut: Count = 0  # that it asks for, after the round under way; 0: it stays
    capability: Capability | None = None  # of a device that was profiled
    codec: Codec | None = None  # of its features; a run may leave that to the device


class RunSpec(JsonMessage, frozen=True):
    """`run`, retained: what the fleet trains. A device needs nothing else to take part."""

    protocol: Count
    run: Text
    network: Text
    num_classes: Annotated[int, Meta(ge=2, le=10_000)]
    rounds: Positive
    stem: Literal["imagenet", "small"] = "imagenet"
    input_shape: tuple[Positive, Positive, Positive] = (3, 32, 32)  # (C, H, W)
    mean: tuple[float, ...] = (0.5,)  # per channel, or one for all, of pixels in 0..1
    std: tuple[Annotated[float, Meta(gt=0)], ...] = (0.5,)
    strategy: Strategy = "sequential"
    order: Order = "step"
    seed: Count = 0
    batch_size: Annotated[int, Meta(ge=2, le=4096)] = 32
    steps: Count = 0  # batches a round; 0: one pass over the device's own pictures
    learning_rate: Annotated[float, Meta(gt=0)] = 0.01  # the highest
    trunk_learning_rate: Annotated[float, Meta(ge=0)] = 0  # 0: as the devices'
    optimizer: Optimizer = "sgd"
    schedule: LearningSchedule = "cosine"
    warm_up: Fraction = 0.02  # share of the run
    momentum: Annotated[float, Meta(ge=0, le=0.9999)] = 0.9  # of AdamW: its first decay rate
    weight_decay: Annotated[float, Meta(ge=0)] = 5e-4
    codec: RunCodec = "fp16"  # auto: each device takes its own
    window: Annotated[int, Meta(ge=1, le=1024)] = 8  # batches a device may have unacknowledged
    window_bytes: Annotated[int, Meta(ge=1 << 16)] = 16 << 20
    threshold: Fraction = 0.5  # normalised entropy at or below which the exit answers
    class_names: ClassNames = ()  # of the first device that joined
    client_averaging: ClientAveraging = "layerwise"  # of client networks, after each round
    aggregation_every: Count = 0  # batches, in which Averaging averages its trunks too; 0: after rounds only
    weighting: Weighting = "samples"  # of all averages
    augmentation: Augmentation = "none"  # of training pictures, on the device
    balanced_loss: bool = False  # the device's loss allows for its own mix of classes
    soft_labels: NonNegative = 0.0  # weight of the trunk's answers in the exits' loss; 0: devices get none
    release: bool = False  # after the last round devices send their client networks, to be exported


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


class Plan(JsonMessage, frozen=True):
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


class ErrorReport(JsonMessage, frozen=True):
    """`devices/ID/inbox/error`: why a message was not taken; `fatal`: the device cannot take part.

    `instance` names the device process that is meant; 0 means whoever it is.
    """

    code: Annotated[int, Meta(ge=1, le=255)]
    message: Text
    fatal: bool = False
    instance: Count = 0


class ServerStatus(JsonMessage, frozen=True):
    """`server/status`, retained, also the last will; published again every few seconds."""

    state: Literal["online", "offline"]
    instance: Count
    run: Text = ""
    doing: Text = ""
    waiting_for: tuple[Name, ...] = ()
    rejected: Count = 0
    time: float = 0.0


class ServerClaim(JsonMessage, frozen=True):
    """`server/claim`: a server that wants to serve the fleet asks whether another one does."""

    instance: Count


class DeviceMetrics(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One device in one committed round; accuracies are on its held-out pictures."""

    cut: Positive
    stage: Text
    train_samples: Count
    batches: Count = 0
    bytes: Count = 0
    exit_loss: float | None = None
    trunk_loss: float | None = None
    exit_accuracy: Fraction | None = None
    trunk_accuracy: Fraction | None = None
    adaptive_accuracy: Fraction | None = None
    offload_share: Fraction | None = None


class Metrics(JsonMessage, frozen=True):
    """`metrics`, retained: the last evaluated round."""

    run: Text
    round: Count
    rounds: Positive
    seconds: float
    devices: dict[Name, DeviceMetrics]
    batches_trained: Count
    duplicates_dropped: Count


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


class Stages(PackedMessage, frozen=True):
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


def label_type(num_classes: int) -> np.dtype[Any]:
    """The narrowest unsigned type that holds `num_classes` labels."""
    return np.dtype("u1") if num_classes <= 1 << 8 else np.dtype("<u2")


def encode_labels(labels: npt.NDArray[np.int64], num_classes: int) -> bytes:
    return labels.astype(label_type(num_classes)).tobytes()


def decode_labels(data: bytes, count: int, num_classes: int) -> npt.NDArray[np.int64]:
    """`count` labels below `num_classes`.

    Raises:
        MalformedMessage: another number of labels, or one out of range.
    """
    kind = label_type(num_classes)
    if len(data) != count * kind.itemsize:
        raise MalformedMessage(f"labels take {len(data)} bytes, {count} samples need {count * kind.itemsize}")
    labels = np.frombuffer(data, dtype=kind).astype(np.int64)
    if count and int(labels.max()) >= num_classes:
        raise MalformedMessage(f"label {int(labels.max())} in a run of {num_classes} classes")
    return labels


def decode_entropy(data: bytes, count: int) -> npt.NDArray[np.float32]:
    """`count` normalised entropies in 0..1.

    Raises:
        MalformedMessage: another number of values, or one out of range.
    """
    if len(data) != 2 * count:
        raise MalformedMessage(f"exit_entropy takes {len(data)} bytes, {count} samples need {2 * count}")
    entropy = np.frombuffer(data, dtype="<f2").astype(np.float32)
    if not ((entropy >= 0) & (entropy <= 1)).all():
        raise MalformedMessage("exit_entropy has values outside 0..1")
    return entropy
