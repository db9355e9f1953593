"""Messages of who is there and how it stands: devices, their profiles, the server, the figures of a round."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from splitee.protocol.encoding import JsonMessage
from splitee.protocol.fields import (
    ClassNames,
    Codec,
    Count,
    Doing,
    Fraction,
    Name,
    NonNegative,
    Positive,
    Text,
)


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
