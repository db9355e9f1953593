# SPDX-License-Identifier: Apache-2.0
"""Messages about the members of a fleet: statuses, profiles, dismissals, and the metrics of a round."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from splitee.protocol.accuracies import (
    MOST_CONFUSED_BY_DEVICE,
    Accuracies,
    ClassRecall,
    ClassRecalls,
    ConfusionMatrix,
    ReleasedThreshold,
)
from splitee.protocol.encoding import JsonMessage
from splitee.protocol.fields import (
    ClassNames,
    Codec,
    Count,
    Doing,
    EpochSeconds,
    Fraction,
    Loss,
    Name,
    NonNegative,
    Positive,
    Text,
)
from splitee.protocol.traffic import Traffic

MOST_DISMISSED = 1000  # devices in one request


class DeviceStatus(JsonMessage, frozen=True):
    """Status of a device: published about once a second, and by the broker as its last will.

    Attributes:
        state: `offline` in the last will and in the farewell.
        instance: number of the process; a process that started later has a greater one.
        doing: activity of the device.
        round: number of the round.
        step: batches done in the phase.
        steps: batches of the phase.
        loss: mean loss of the exit so far in the round.
        batches: batches that this process has sent.
        bytes: bytes of payloads that this process has sent.
        rejected: malformed messages that this process was sent.
        temperature: of the hottest sensor, in degrees Celsius.
        time: seconds since the epoch, by the device's clock.
        predicted: images that this process has classified for its owner.
        offloaded: number of these images that it has offloaded.
        written: bytes that this process has written to its disk; none if its system does not report them.
        traffic: bytes that this process has sent and received, by purpose; none from an earlier release.
            Measurements of the link are not counted.
        upload: throughput of its link in bytes per second, if it is low and the link is busy; else none.
        memory: resident memory of this process in bytes; none if its system does not report it.
        memory_limit: limit of its memory in bytes, by its control groups or its machine.
    """

    state: Literal["online", "offline"]
    instance: Count
    doing: Doing = "starting"
    round: Count = 0
    step: Count = 0
    steps: Count = 0
    loss: Loss | None = None
    batches: Count = 0
    bytes: Count = 0
    rejected: Count = 0
    temperature: float | None = None
    time: float = 0.0
    predicted: Count = 0
    offloaded: Count = 0
    written: Count | None = None
    traffic: Traffic | None = None
    upload: NonNegative | None = None
    memory: Count | None = None
    memory_limit: Count | None = None


class CutCost(msgspec.Struct, frozen=True):
    """The cost of one cut for a device.

    Attributes:
        cut: stage after which the network is cut.
        seconds: seconds to train, encode and send a batch.
        bytes: bytes of a batch on the wire.
        memory: bytes of memory that training takes.
        fits: whether this is within the memory that training may take.
    """

    cut: Positive
    seconds: NonNegative
    bytes: Count
    memory: Count
    fits: bool


class Capability(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Capabilities of a device as measured by its profiler; None: unknown.

    Attributes:
        network: network that was measured.
        batch_size: samples per batch.
        codec: codec of the features.
        machine: model of the machine, or its CPU.
        cores: cores that training may use.
        threads: threads that torch uses.
        memory: bytes of memory that training may take.
        upload: throughput to the broker in bytes per second.
        round_trip: seconds to the broker and back.
        reason: why this cut was chosen.
        cuts: cost of each cut.
    """

    network: Text
    batch_size: Count
    codec: Codec
    machine: Text
    cores: NonNegative
    threads: Count
    memory: Count | None = None
    upload: NonNegative | None = None
    round_trip: NonNegative | None = None
    reason: Text = ""
    cuts: Annotated[tuple[CutCost, ...], Meta(max_length=1000)] = ()


class Profile(JsonMessage, frozen=True):
    """Properties of a device, and the cut that it chose. Publishing the profile requests to join.

    Attributes:
        protocol: version of the protocol that the device speaks.
        instance: instance of the process, as in its status.
        version: release of the device's software.
        cut: stage after which it is cut.
        class_names: names of the classes, in the order of the labels; the same on every device of a run.
        train_samples: images for training.
        held_out_samples: images for evaluation.
        run: run that it requests to join; empty, from an earlier release: any.
        committed: its last committed round in that run.
        next_cut: cut that it requests after the current round; 0: none.
        capability: measurements of a device that was profiled.
        codec: codec of its features, if the run lets devices choose.
        alone_accuracy: accuracy, on its held-out images, of an exit that it trained alone for as many rounds
            before it joined.
        pixel_mean: means of its training images' channels, for pixels in 0..1, if the run requests them.
        pixel_std: standard deviations of the same pixels.
        empty_classes: names of class folders without images; if the fleet has these classes, the device can
            have them too after a restart.
    """

    protocol: Count
    instance: Count
    version: Text
    cut: Positive
    class_names: ClassNames
    train_samples: Positive
    held_out_samples: Count
    run: Text = ""
    committed: Count = 0
    next_cut: Count = 0
    capability: Capability | None = None
    codec: Codec | None = None
    alone_accuracy: Fraction | None = None
    pixel_mean: Annotated[tuple[Fraction, ...], Meta(max_length=64)] = ()
    pixel_std: Annotated[tuple[Fraction, ...], Meta(max_length=64)] = ()
    empty_classes: ClassNames = ()


class ErrorReport(JsonMessage, frozen=True):
    """The reason why a message of a device was rejected, or why the device cannot take part.

    Attributes:
        code: exit code that belongs to the error.
        message: one line for people.
        fatal: whether the device cannot take part.
        instance: instance of the process concerned; 0: any.
    """

    code: Annotated[int, Meta(ge=1, le=255)]
    message: Text
    fatal: bool = False
    instance: Count = 0


class ServerStatus(JsonMessage, frozen=True):
    """Status of the server: published every few seconds, and by the broker as its last will.

    Attributes:
        state: `offline` in the last will and in the farewell.
        instance: number of the process; a process that started later has a greater one.
        run: id of the run.
        doing: one line for people.
        waiting_for: devices whose next message the run waits for.
        rejected: messages that were rejected.
        quarantined: devices whose messages are ignored, because too many were rejected.
        dismissed: devices that an operator has dismissed; the run continues without them.
        time: seconds since the epoch, by the server's clock.
    """

    state: Literal["online", "offline"]
    instance: Count
    run: Text = ""
    doing: Text = ""
    waiting_for: tuple[Name, ...] = ()
    rejected: Count = 0
    quarantined: tuple[Name, ...] = ()
    dismissed: tuple[Name, ...] = ()
    time: float = 0.0


class ServerClaim(JsonMessage, frozen=True):
    """A starting server's question whether another server serves the fleet.

    A server that does publishes its status at once. If two start together, the later one ends: the earlier
    one repeats its claim when it receives the later one's.

    Attributes:
        instance: instance of the starting server.
    """

    instance: Count


class Dismissal(JsonMessage, frozen=True):
    """An operator's request to continue the run without devices that are gone for good.

    Attributes:
        request: number that the reply repeats.
        devices: the devices to dismiss; if one of them is unknown, none is dismissed.
        undo: let the devices in again.
    """

    request: Count
    devices: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=MOST_DISMISSED)]
    undo: bool = False


class DismissalReply(JsonMessage, frozen=True):
    """The server's reply to a dismissal, sent when that is durable.

    Attributes:
        request: number of the dismissal.
        code: exit code for the requester; 0: success.
        message: one line for people.
    """

    request: Count
    code: Annotated[int, Meta(ge=0, le=255)] = 0
    message: Text = ""


class DeviceMetrics(Accuracies, frozen=True, kw_only=True, omit_defaults=True):
    """One device in one committed round; accuracies are on its held-out images.

    Attributes:
        cut: stage after which the device is cut.
        stage: name of that stage.
        train_samples: images for training.
        held_out_samples: number of held-out images for its accuracies.
        batches: batches trained so far, over all rounds.
        bytes: bytes of payloads that the server has received from the device so far.
        exit_loss: mean loss of the exit over the round.
        trunk_loss: mean loss of the trunk over the round.
        weakest_class: class whose recall has the lowest upper end of its 95 % interval.
        released: threshold of the model that was released to the device.
        alone_accuracy: accuracy of an exit that the device has trained alone, without the fleet.
        evaluated: earlier round of these accuracies, if the device was not evaluated after this
            one; 0: this round.
    """

    cut: Positive
    stage: Text
    train_samples: Count
    held_out_samples: Count = 0
    batches: Count = 0
    bytes: Count = 0
    exit_loss: float | None = None
    trunk_loss: float | None = None
    weakest_class: ClassRecall | None = None
    released: ReleasedThreshold | None = None
    alone_accuracy: Fraction | None = None
    evaluated: Count = 0


class FleetMetrics(Accuracies, frozen=True, kw_only=True, omit_defaults=True):
    """One committed round over the held-out images of all devices, each image counted once.

    Attributes:
        images: held-out images that were evaluated.
        weakest_class: class whose recall has the lowest upper end of its 95 % interval.
        class_recalls: recalls of the classes that have held-out images, at most the first 256.
    """

    images: Count = 0
    weakest_class: ClassRecall | None = None
    class_recalls: ClassRecalls = ()


class RoundSeconds(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Seconds of a round that the server spent on each task; other work is left out.

    Attributes:
        training: training steps of the trunk.
        waiting: waiting for a batch in training phases.
        statistics: computing BatchNorm's statistics.
        evaluation: evaluating the round.
        aggregation: averaging the networks of devices and trunks.
        commit: saving the round durably and announcing it.
    """

    training: NonNegative = 0.0
    waiting: NonNegative = 0.0
    statistics: NonNegative = 0.0
    evaluation: NonNegative = 0.0
    aggregation: NonNegative = 0.0
    commit: NonNegative = 0.0


class Metrics(JsonMessage, frozen=True):
    """The last evaluated round.

    Attributes:
        run: id of the run.
        round: round that was evaluated.
        rounds: rounds of the run.
        seconds: seconds since the run began.
        batches_trained: batches that the trunk was trained on so far.
        duplicates_dropped: batches that arrived again after they had been taken.
        devices: figures of each device; on the wire they have messages of their own, so that this one is
            small in any fleet.
        fleet: figures of the fleet as a whole.
        time: time of the evaluation in seconds since the epoch, by the server's clock; 0: from an earlier
            release.
        spent: how the time of the round was spent; none from an earlier release.
    """

    run: Text
    round: Count
    rounds: Positive
    seconds: float
    batches_trained: Count
    duplicates_dropped: Count
    devices: dict[Name, DeviceMetrics] = msgspec.field(default_factory=dict)
    fleet: FleetMetrics = FleetMetrics()
    time: EpochSeconds = 0.0
    spent: RoundSeconds | None = None


class DeviceFigures(JsonMessage, frozen=True):
    """One device in the last evaluated round.

    Attributes:
        run: id of the run.
        round: round that was evaluated.
        figures: of the device.
        confusion: its confusion matrix; none with many classes, or if it was not evaluated.
    """

    run: Text
    round: Count
    figures: DeviceMetrics
    confusion: ConfusionMatrix | None = None

    def __post_init__(self) -> None:
        if self.confusion is not None and len(self.confusion.classes) > MOST_CONFUSED_BY_DEVICE:
            raise ValueError(f"confusion of more than {MOST_CONFUSED_BY_DEVICE} classes")
