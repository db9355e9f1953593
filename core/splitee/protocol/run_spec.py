"""What a fleet trains: the run's specification, which every device reads."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from splitee.protocol.encoding import JsonMessage
from splitee.protocol.fields import (
    Augmentation,
    ClassNames,
    ClientAveraging,
    Count,
    Fraction,
    LearningSchedule,
    Name,
    NonNegative,
    Optimizer,
    Order,
    Positive,
    RunCodec,
    Text,
    Weighting,
)


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
    strategy: Name = "sequential"
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
