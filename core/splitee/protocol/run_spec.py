# SPDX-License-Identifier: Apache-2.0
"""The specification of a run. Each setting of a run is declared here, and nowhere else.

Flags, variables, settings files, the profiler's key and docs/reference/commands.md are derived from these
declarations (`splitee.cli.run_flags`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from splitee.protocol.encoding import JsonMessage
from splitee.protocol.fields import (
    Augmentation,
    Average,
    ClassNames,
    ClientAveraging,
    Count,
    EvaluatedBy,
    Exits,
    Fit,
    Fraction,
    LearningSchedule,
    Name,
    NonNegative,
    Optimizer,
    Order,
    Positive,
    Precision,
    RunCodec,
    Sample,
    SampleBy,
    Side,
    Text,
    TrunkMomentum,
    Weighting,
)


def _setting(help_text: str, *, costs: bool = False, flag: str = "", **bounds: Any) -> Meta:
    """A field that users set.

    Args:
        costs: whether it changes the cost of a device's training step.
        flag: the flag that sets it; "": named after the field.
    """
    return Meta(extra={"help": help_text, "costs": costs, "flag": flag}, **bounds)


class RunSpec(JsonMessage, frozen=True, kw_only=True):
    """What the fleet trains. A device needs nothing else to take part.

    Attributes:
        protocol: version of the protocol that the server speaks.
        precision: of the trunks' training; each device has its own.
        run: id of the run.
        mean: subtracted from pixels in 0..1, per channel or one for all.
        std: then divides them, per channel or one for all.
        weights: source of the initial weights, with the first digits of their SHA-256; empty: the seed.
        frozen: stages 1..frozen are not trained.
        exit_cuts: cuts of the run's exits if `exits` is fleet; a device trains its own exit and those at
            lower cuts.
        settled: the settings that depend on the fleet are decided (`frozen` of auto, `mean` and `std` of
            fleet, `exit_cuts`); they are before the first round.
        fused: the optimizers of devices and trunks pass over each weight once a step. Runs of earlier
            releases continue without it, because its results differ in the last bits.
        round_seconds: seconds that each device trains in a round, at most one pass over its data; 0: `steps`.
        window_bytes: bytes of batches that a device may have unacknowledged.
        class_names: names of the classes, in the order of their labels; empty: the devices decide.
    """

    protocol: Count
    run: Text
    network: Annotated[
        Text,
        _setting(
            "Network to train: a torchvision classifier such as resnet18, or module:factory.", costs=True
        ),
    ]
    stem: Annotated[
        Literal["imagenet", "small"],
        _setting(
            "First layers of the network; small: a resnet's variant for images of 32 pixels.", costs=True
        ),
    ] = "imagenet"
    num_classes: Annotated[
        int, _setting("Number of classes that the network distinguishes.", costs=True, ge=2, le=10_000)
    ]
    input_shape: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=3)], Side, Side],
        _setting(
            "Channels, height and width, in pixels, of the images that the network sees.",
            costs=True,
            flag="--input",
        ),
    ] = (3, 32, 32)
    fit: Annotated[
        Fit,
        _setting(
            "How an image is fitted to the shape of --input; crop: its middle; pad: the whole image, between "
            "grey margins; stretch: the whole image, stretched."
        ),
    ] = "crop"
    weights: Text = ""
    freeze: Annotated[
        Annotated[int, Meta(ge=0, le=10_000)] | Literal["auto"],
        _setting(
            "Number of stages, counted from the first, that are not trained; auto: by the number of images."
        ),
    ] = 0
    frozen: Count = 0
    normalize: Annotated[
        Text,
        _setting(
            "Mean and standard deviation for normalising images; weights: those that the weights were "
            "trained with; fleet: those of the devices' images; or MEAN,../STD,.. such as 0.5/0.5."
        ),
    ] = ""
    exits: Annotated[
        Exits,
        _setting(
            "Exits that a device trains; own: the one at its cut; fleet: one at every cut of the fleet that "
            "its network contains; all learn from the best one (with --client-averaging layerwise).",
            costs=True,
        ),
    ] = "own"
    exit_cuts: Annotated[tuple[Positive, ...], Meta(max_length=1024)] = ()
    settled: bool = False
    fused: bool = False
    mean: Annotated[tuple[Annotated[float, Meta(ge=-1e6, le=1e6)], ...], Meta(max_length=64)] = (0.5,)
    std: Annotated[tuple[Annotated[float, Meta(ge=1e-6, le=1e6)], ...], Meta(max_length=64)] = (0.5,)
    rounds: Annotated[Positive, _setting("Number of rounds that are trained and committed.")]
    sample: Annotated[
        Sample,
        _setting(
            "Devices that train in a round: all that can take part, a number of them, or a share in percent."
        ),
    ] = "all"
    sample_by: Annotated[
        SampleBy,
        _setting(
            "How the devices of --sample are chosen; waiting: those that have waited longest, at random "
            "among equals; uniform: at random."
        ),
    ] = "waiting"
    evaluated_by: Annotated[
        EvaluatedBy,
        _setting(
            "Devices on whose held-out images a round is evaluated; sample: the devices of the round (with "
            "--sample), after the last round all; all: all devices after each round."
        ),
    ] = "sample"
    strategy: Annotated[Name, _setting("Strategy of training the trunk on the devices' batches.")] = (
        "sequential"
    )
    order: Annotated[
        Order,
        _setting(
            "Order of the devices' batches in the trunk's training; step: one batch of each device in turn; "
            "device: all batches of one device, then those of the next."
        ),
    ] = "step"
    seed: Annotated[Count, _setting("Seed of all random choices: the same seed gives the same weights.")] = 0
    batch_size: Annotated[int, _setting("Images in a batch.", costs=True, ge=2, le=4096)] = 32
    steps: Annotated[
        Count,
        _setting(
            "Batches that a device trains in a round; 0: one pass over its data; time:SECONDS: as many as it "
            "trains in that time, at most one pass."
        ),
    ] = 0
    round_seconds: Annotated[float, Meta(ge=0, le=86_400)] = 0
    learning_rate: Annotated[float, _setting("Highest learning rate of the run.", gt=0)] = 0.01
    trunk_learning_rate: Annotated[
        float, _setting("Highest learning rate of the trunk; 0: that of the devices.", ge=0)
    ] = 0
    optimizer: Annotated[
        Optimizer, _setting("Optimizer of devices and trunks; sgd has Nesterov momentum.")
    ] = "sgd"
    schedule: Annotated[LearningSchedule, _setting("Course of the learning rate over the run.")] = "cosine"
    warm_up: Annotated[Fraction, _setting("Share of the run in which the learning rate rises.")] = 0.02
    momentum: Annotated[
        float, _setting("Momentum of the optimizer; with adamw its first decay rate.", ge=0, le=0.9999)
    ] = 0.9
    weight_decay: Annotated[float, _setting("Weight decay of the optimizer.", ge=0)] = 5e-4
    # Largest norms of honest steps: 24 with resnet18, 108 with mobilenet_v2 at the demo's learning rate.
    clip_gradient: Annotated[
        NonNegative,
        _setting("Norm to which a larger gradient of a trunk's step is scaled down; 0: no limit."),
    ] = 200.0
    codec: Annotated[
        RunCodec,
        _setting(
            "Codec of the features on the wire; auto: chosen by each device for its CPU and link.", costs=True
        ),
    ] = "fp16"
    precision: Annotated[
        Precision,
        _setting("Precision that networks are trained in; bf16: bfloat16, if the CPU has it.", costs=True),
    ] = "fp32"
    window: Annotated[
        int, _setting("Batches that a device may have unacknowledged.", costs=True, ge=1, le=1024)
    ] = 8
    window_bytes: Annotated[int, Meta(ge=1 << 16)] = 16 << 20
    threshold: Annotated[
        Fraction, _setting("Normalised entropy up to which the exit's prediction is taken.")
    ] = 0.5
    class_names: ClassNames = ()
    client_averaging: Annotated[
        ClientAveraging,
        _setting(
            "Averaging of the client networks after each round, for which they are sent in both directions; "
            "same-cut: over devices with the same cut; layerwise: each layer over all that hold it, trunks "
            "included."
        ),
    ] = "layerwise"
    server_momentum: Annotated[
        float,
        _setting(
            "Share of the previous commit's change of the averaged networks that each commit repeats (with "
            "--client-averaging layerwise).",
            ge=0,
            le=0.9,
        ),
    ] = 0.0
    aggregation_every: Annotated[
        Count,
        _setting("Number of batches after which trunks are averaged within a round; 0: after rounds only."),
    ] = 0
    trunk_momentum: Annotated[
        TrunkMomentum,
        _setting(
            "Momentum of the devices' trunks after a round; dropped: it is reset, like the devices' own "
            "after averaging, and is neither kept in memory nor saved."
        ),
    ] = "kept"
    weighting: Annotated[
        Weighting,
        _setting(
            "Weight of a device in averages; samples: number of its images that were trained on; uniform: 1."
        ),
    ] = "samples"
    average: Annotated[
        Average,
        _setting(
            "Average of each weight over the devices that hold it; trimmed leaves out a fifth of the values "
            "at each end, at least one; with trimmed and median all devices have the same weight."
        ),
    ] = "mean"
    largest_share: Annotated[
        float,
        _setting("Largest share of one device in a mean; with n devices at least 1/n.", gt=0, le=1),
    ] = 1.0
    clip_updates: Annotated[
        NonNegative,
        _setting("Multiple of the devices' median update to which longer ones are shortened; 0: no limit."),
    ] = 0.0
    largest_loss: Annotated[
        NonNegative,
        _setting(
            "Multiple of the devices' median trunk loss above which a device is left out of the next round's "
            "training and averages; 0: none is left out."
        ),
    ] = 0.0
    augmentation: Annotated[
        Augmentation,
        _setting(
            "Augmentation of training images, on the device; photo: parts of images, flipped and recoloured."
        ),
    ] = "none"
    balanced_loss: Annotated[
        bool,
        _setting("Correct losses for each device's own mix of classes: for devices with different mixes."),
    ] = False
    soft_labels: Annotated[
        NonNegative,
        _setting(
            "Weight of the trunk's predictions of the previous round in the exits' loss: for long runs on "
            "few images; 0: none are sent."
        ),
    ] = 0.0
    deep_supervision: Annotated[
        NonNegative,
        _setting(
            "Weight of the fleet's exits at deeper cuts in a trunk's loss (with --exits fleet); 0: only the "
            "loss at its end."
        ),
    ] = 0.0
    statistics_batches: Annotated[
        Annotated[int, Meta(ge=0, le=1024)],
        _setting(
            "Number of batches that each device sends after a commit, so that BatchNorm's statistics are "
            "computed anew (with --client-averaging layerwise); 0: those from training are kept."
        ),
    ] = 0
    release: Annotated[
        bool, _setting("Export the models after the last round, and send each device its own.")
    ] = False

    @property
    def awaits_fleet(self) -> bool:
        """Whether a setting that depends on the fleet is not decided yet."""
        follows = self.freeze == "auto" or self.normalize == "fleet" or self.shares_exits
        return follows and not self.settled

    @property
    def is_sampled(self) -> bool:
        """Whether not all devices take part in each round."""
        return self.sample not in ("all", "100%")

    @property
    def takes_statistics(self) -> bool:
        """Whether BatchNorm's statistics are computed anew after each commit, which needs averages."""
        return self.statistics_batches > 0 and self.client_averaging == "layerwise"

    @property
    def shares_exits(self) -> bool:
        """Whether devices also train the exits of shallower devices, which needs averages."""
        return self.exits == "fleet" and self.client_averaging == "layerwise"
