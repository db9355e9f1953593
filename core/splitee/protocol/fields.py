# SPDX-License-Identifier: Apache-2.0
"""Types of message fields with their bounds."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")]
Text = Annotated[str, Meta(max_length=1000)]
Version = Annotated[str, Meta(max_length=200)]
LARGEST_COUNT = 1 << 62
Count = Annotated[int, Meta(ge=0, le=LARGEST_COUNT)]
Positive = Annotated[int, Meta(ge=1, le=LARGEST_COUNT)]
Milliseconds = Annotated[int, Meta(ge=0, le=253_402_300_799_999)]  # since the epoch, up to the year 9999
EpochSeconds = Annotated[float, Meta(ge=0, le=253_402_300_799)]  # since the epoch, up to the year 9999
Fraction = Annotated[float, Meta(ge=0, le=1)]
Loss = Annotated[float, Meta(ge=0, le=1e30)]  # neither infinite nor NaN
NonNegative = Annotated[float, Meta(ge=0, le=1e15)]
TensorName = Annotated[str, Meta(max_length=300)]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
LARGEST_RELEASE = 1 << 30  # bytes of a bundle; a model's are fewer
Signature = Annotated[str, Meta(pattern=r"^([0-9a-f]{128})?\Z")]
LONGEST_CLASS_NAME, MOST_CLASS_NAMES = 200, 10_000
ClassNames = Annotated[
    tuple[Annotated[str, Meta(min_length=1, max_length=LONGEST_CLASS_NAME)], ...],
    Meta(max_length=MOST_CLASS_NAMES),
]
Codec = Annotated[str, Meta(pattern=r"^(fp32|fp16|int8)(\+zstd)?\Z")]
RunCodec = Annotated[str, Meta(pattern=r"^(auto|(fp32|fp16|int8)(\+zstd)?)\Z")]

LARGEST_SIDE = 512  # pixels of a network's input
Side = Annotated[int, Meta(ge=1, le=LARGEST_SIDE)]

Phase = Literal["train", "statistics", "evaluate"]
RunPhase = Literal["gather", "train", "statistics", "evaluate", "release", "finished"]
Purpose = Literal[
    "training",
    "evaluation",
    "statistics",
    "client_networks",
    "soft_labels",
    "models",
    "offload",
    "protocol",
]
Doing = Literal["starting", "waiting", "training", "evaluating", "finished", "serving"]
PredictionSource = Literal["exit", "trunk", "local-fallback"]
ReleaseKind = Literal["model", "software"]
ReleaseAction = Literal["install", "roll back"]
ReleaseState = Literal["downloading", "trying", "in service", "failed", "rolled back"]
Order = Literal["step", "device"]
ClientAveraging = Literal["none", "same-cut", "layerwise"]
Optimizer = Literal["sgd", "adamw"]
Precision = Literal["fp32", "bf16"]
LearningSchedule = Literal["cosine", "constant"]
Fit = Literal["crop", "pad", "stretch"]
Exits = Literal["own", "fleet"]
Augmentation = Literal["none", "flip", "flip-crop", "photo"]
Weighting = Literal["samples", "uniform"]
TrunkMomentum = Literal["kept", "dropped"]
Average = Literal["mean", "trimmed", "median"]
SAMPLE = r"^(all|[1-9][0-9]{0,6}|(100|[1-9][0-9]?)%)\Z"
Sample = Annotated[str, Meta(pattern=SAMPLE)]
SampleBy = Literal["waiting", "uniform"]
EvaluatedBy = Literal["sample", "all"]
