# SPDX-License-Identifier: Apache-2.0
"""What a fleet trains: the run's specification. Each setting of a run is declared here, and nowhere else.

Flags, variables, settings files, the profiler's key and docs/reference/commands.md are made of these
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
    """A field that people set.

    Args:
        costs: it changes what a device's training step takes.
        flag: by which people set it; "": the field's name.
    """
    return Meta(extra={"help": help_text, "costs": costs, "flag": flag}, **bounds)


class RunSpec(JsonMessage, frozen=True, kw_only=True):
    """What the fleet trains. A device needs nothing else to take part.

    Attributes:
        protocol: version of the protocol that the server speaks.
        precision: what trunks compute in; each device has its own.
        run: id of the run.
        mean: subtracted from pixels in 0..1, per channel or one for all.
        std: divides them then, per channel or one for all.
        weights: what the run begins from, with the first digits of its SHA-256; empty: the seed's weights.
        frozen: stages 1..frozen are not trained.
        exit_cuts: of the run's exits where `exits` is fleet: a device trains its own and those below it.
        settled: what follows from the fleet, `frozen` of auto, `mean` and `std` of fleet and `exit_cuts`, is
            decided; it is before the first round.
        fused: optimizers step in one pass over each weight, on every side. Runs of releases that knew no such
            step go on without it, for its last bits are others.
        round_seconds: for so long each device trains in a round, at most one pass over its data; 0: `steps`.
        window_bytes: bytes of batches that a device may have unacknowledged.
        class_names: names of the classes, in the order of their labels; empty: the devices are to decide.
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
            "How an image is brought to the shape of --input; crop: its middle; pad: all of it, between grey "
            "margins; stretch: all of it, stretched."
        ),
    ] = "crop"
    weights: Text = ""
    freeze: Annotated[
        Annotated[int, Meta(ge=0, le=10_000)] | Literal["auto"],
        _setting(
            "Number of stages that nobody trains, counted from the first; auto: by how many images there are."
        ),
    ] = 0
    frozen: Count = 0
    normalize: Annotated[
        Text,
        _setting(
            "Mean and standard deviation by which images are normalised; weights: those that the weights "
            "were trained with; fleet: those of the devices' images; or MEAN,../STD,.. such as 0.5/0.5."
        ),
    ] = ""
    exits: Annotated[
        Exits,
        _setting(
            "Exits that a device trains; own: that at its cut; fleet: one at every cut of the fleet that its "
            "network holds, which learn from the best of them (with --client-averaging layerwise).",
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
            "Devices that train a round, of those that are there: all, a number, or a share in percent."
        ),
    ] = "all"
    sample_by: Annotated[
        SampleBy,
        _setting(
            "Which ones (with --sample); waiting: those that have waited longest, drawn by lot among equals; "
            "uniform: drawn by lot."
        ),
    ] = "waiting"
    evaluated_by: Annotated[
        EvaluatedBy,
        _setting(
            "Devices on whose held-out images a round is evaluated; sample: those of the round (with "
            "--sample), after the last round all; all: all after each round."
        ),
    ] = "sample"
    strategy: Annotated[Name, _setting("Strategy by which the devices' batches train the trunk.")] = (
        "sequential"
    )
    order: Annotated[
        Order,
        _setting(
            "Order of the devices' batches in the trunk's training; step: each device's in turn; device: all "
            "of one device first."
        ),
    ] = "step"
    seed: Annotated[Count, _setting("Seed of all random choices: the same one gives the same weights.")] = 0
    batch_size: Annotated[int, _setting("Images in a batch.", costs=True, ge=2, le=4096)] = 32
    steps: Annotated[
        Count,
        _setting(
            "Batches that a device trains in a round; 0: one pass over its data; time:SECONDS: as many as it "
            "makes in that time, at most one pass."
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
        float, _setting("Momentum of the optimizer; of adamw its first decay rate.", ge=0, le=0.9999)
    ] = 0.9
    weight_decay: Annotated[float, _setting("Weight decay of the optimizer.", ge=0)] = 5e-4
    # The largest of honest steps: 24 with resnet18, 108 with mobilenet_v2 at the demo's learning rate.
    clip_gradient: Annotated[
        NonNegative,
        _setting("Largest norm of the gradient of a trunk's step, to which it is scaled down; 0: no limit."),
    ] = 200.0
    codec: Annotated[
        RunCodec,
        _setting("Codec of the features on the wire; auto: by each device's CPU and link.", costs=True),
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
            "Averaging of the client networks after each round, for which they travel both ways; same-cut: "
            "with those of the same cut; layerwise: with all that hold a layer, trunks included."
        ),
    ] = "layerwise"
    server_momentum: Annotated[
        float,
        _setting(
            "Share of what a commit has changed in averaged networks that the next one changes once more "
            "(with --client-averaging layerwise).",
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
            "Momentum of the devices' trunks after a round; dropped: it starts anew, as the devices' own "
            "does at an average, and is neither held nor saved."
        ),
    ] = "kept"
    weighting: Annotated[
        Weighting,
        _setting(
            "Weight of a device in averages; samples: the images that its batches trained with; uniform: 1."
        ),
    ] = "samples"
    average: Annotated[
        Average,
        _setting(
            "Average of each weight over the devices that hold it; trimmed leaves out a fifth of the values "
            "at each end, at least one; in trimmed and median all devices count the same."
        ),
    ] = "mean"
    largest_share: Annotated[
        float,
        _setting("Largest share of a mean's weight that one device may have; of n at least 1/n.", gt=0, le=1),
    ] = 1.0
    clip_updates: Annotated[
        NonNegative,
        _setting("Multiple of the devices' median update to which longer ones are shortened; 0: none is."),
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
            "Augmentation of training images, on the device; photo: parts of them, flipped, recoloured."
        ),
    ] = "none"
    balanced_loss: Annotated[
        bool,
        _setting("Let losses allow for each device's own mix of classes: for devices that have unlike ones."),
    ] = False
    soft_labels: Annotated[
        NonNegative,
        _setting(
            "Weight of the trunk's predictions, of the round before, in what exits learn from: for long runs "
            "on few images; 0: none are sent."
        ),
    ] = 0.0
    deep_supervision: Annotated[
        NonNegative,
        _setting(
            "Weight of the fleet's exits at deeper cuts in what a trunk learns (with --exits fleet); 0: it "
            "learns from the labels at its end alone."
        ),
    ] = 0.0
    statistics_batches: Annotated[
        Annotated[int, Meta(ge=0, le=1024)],
        _setting(
            "Number of batches that each device sends so that BatchNorm's statistics are taken anew for what "
            "is committed (with --client-averaging layerwise); 0: they stay as training left them."
        ),
    ] = 0
    release: Annotated[
        bool, _setting("Export the models after the last round, and send each device its own.")
    ] = False

    @property
    def awaits_fleet(self) -> bool:
        """Whether a setting is still to follow from the devices that join."""
        follows = self.freeze == "auto" or self.normalize == "fleet" or self.shares_exits
        return follows and not self.settled

    @property
    def is_sampled(self) -> bool:
        """Whether not all devices take part in each round."""
        return self.sample not in ("all", "100%")

    @property
    def takes_statistics(self) -> bool:
        """Whether BatchNorm's statistics are taken anew after each commit: where networks are averaged."""
        return self.statistics_batches > 0 and self.client_averaging == "layerwise"

    @property
    def shares_exits(self) -> bool:
        """Whether devices train the exits of shallower ones, too: where they are averaged with them."""
        return self.exits == "fleet" and self.client_averaging == "layerwise"
