# SPDX-License-Identifier: Apache-2.0
"""Messages of inference and of releases; those of training are in rounds.py."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from splitee.protocol.codecs import EncodedTensor
from splitee.protocol.encoding import MAX_PACKED, JsonMessage, PackedMessage
from splitee.protocol.fields import (
    LARGEST_RELEASE,
    LONGEST_CLASS_NAME,
    Count,
    Digest,
    EpochSeconds,
    Fraction,
    Milliseconds,
    NonNegative,
    Positive,
    PredictionSource,
    ReleaseAction,
    ReleaseState,
    Signature,
    Text,
    Version,
)

MOST_LAST = 5  # predictions that a device reports in its `Serving`


class InferRequest(PackedMessage, frozen=True):
    """Features of offloaded images, for predictions by the trunk.

    Attributes:
        run: run that the model comes from.
        cut: cut of the model.
        features: features (B, ...) of B images.
    """

    run: Annotated[str, Meta(max_length=100)]
    cut: Positive
    features: EncodedTensor


class InferReply(PackedMessage, frozen=True):
    """The trunk's logits, or the reason why there are none.

    Attributes:
        run: run that the trunk comes from.
        round: round that the trunk comes from.
        logits: logits (B, classes) in fp32.
        error: the reason why there are no logits.
        together: number of samples in the same forward pass.
    """

    run: Annotated[str, Meta(max_length=100)]
    round: Count
    logits: EncodedTensor | None = None
    error: Text = ""
    together: Count = 0


class ReleaseOffer(JsonMessage, frozen=True):
    """A release that the device is to download and put into service, or to roll back.

    Attributes:
        release: SHA-256 of the bundle.
        action: roll back: a device that has the release in service returns to the one before.
        signed_at: milliseconds since the epoch, by the signer's clock.
        signature: Ed25519, in hexadecimal; "": none.
    """

    release: Digest
    action: ReleaseAction = "install"
    signed_at: Milliseconds = 0
    signature: Signature = ""


class ModelOffer(ReleaseOffer, frozen=True, kw_only=True):
    """A model for a device.

    The signature is of a JSON array without spaces: "splitee release 1" (to roll back: "splitee release
    roll back 1"), the fleet, the device, `run`, `release` and `signed_at`.

    Attributes:
        size: bytes of the bundle.
        run: run that the model comes from.
    """

    size: Annotated[int, Meta(ge=1, le=MAX_PACKED)]
    run: Text = ""


class SoftwareOffer(ReleaseOffer, frozen=True, kw_only=True):
    """Software for a device; it must be signed.

    The signature is of a JSON array without spaces: "splitee software 1" (to roll back: "splitee software
    roll back 1"), the fleet, the device, `version`, `release` and `signed_at`.

    Attributes:
        size: bytes of the bundle.
        version: version of the software.
    """

    size: Annotated[int, Meta(ge=1, le=LARGEST_RELEASE)]
    version: Version


class ReleaseWant(JsonMessage, frozen=True):
    """A device's request for the next bytes of a release.

    Attributes:
        release: SHA-256 of the bundle.
        offset: bytes of it that the device has.
    """

    release: Digest
    offset: Annotated[int, Meta(ge=0, le=LARGEST_RELEASE)]


class ReleasePart(PackedMessage, frozen=True):
    """Bytes of a release.

    Attributes:
        release: SHA-256 of the bundle.
        offset: position of the first byte.
        data: bytes of the bundle.
    """

    release: Digest
    offset: Annotated[int, Meta(ge=0, le=LARGEST_RELEASE)]
    data: Annotated[bytes, Meta(min_length=1)]


class ServedModel(msgspec.Struct, frozen=True):
    """The model with which a device predicts.

    Attributes:
        release: SHA-256 of the bundle.
        run: run that the model comes from.
        round: round that it comes from.
        since: seconds since the epoch, by the device's clock.
    """

    release: Digest
    run: Text
    round: Count
    since: EpochSeconds


class ReleaseReport(JsonMessage, frozen=True):
    """The progress of a release on its device.

    Attributes:
        release: SHA-256 of the bundle.
        state: state of the release on the device.
        reason: one line for people.
        time: seconds since the epoch, by the device's clock; 0: from an earlier release of the software.
        have: bytes that the device has, while it downloads the release.
        size: bytes of the release, while the device downloads it.
    """

    release: Digest
    state: ReleaseState
    reason: Text = ""
    time: EpochSeconds = 0.0
    have: Count = 0
    size: Count = 0


class ModelReport(ReleaseReport, frozen=True):
    """The progress of a model on its device.

    Attributes:
        run: run that the release comes from, if it is known.
        serves: model in service now, whatever the state of this release.
    """

    run: Text = ""
    serves: ServedModel | None = None


class SoftwareReport(ReleaseReport, frozen=True):
    """The progress of a release of software on its device.

    Attributes:
        release: SHA-256 of the bundle; "": no release has installed the device's software.
        version: version of the release, if it is known.
        runs: version that the device runs now, whatever the state of this release.
        machine: the device's machine, such as aarch64; "" if unknown.
        python: the device's Python, such as cp311; "" if unknown.
    """

    release: Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?\Z")]
    version: Version = ""
    runs: Version = ""
    machine: Annotated[str, Meta(max_length=20)] = ""
    python: Annotated[str, Meta(max_length=20)] = ""


class PredictionReport(JsonMessage, frozen=True, kw_only=True):
    """The prediction for one image, as `splitee predict --json` prints it.

    Attributes:
        image: name of the image's file; "" if only its old name `picture` is given.
        label: name of the class.
        probability: probability of that class.
        entropy: normalised entropy of the exit's prediction.
        source: the exit, the trunk, or the exit because no prediction of the trunk came (local-fallback).
        milliseconds: from the image to the prediction.
        time: seconds since the epoch, by the device's clock.
        picture: the old name of `image`, which will be removed with the next release.
    """

    image: Text = ""
    label: Text
    probability: Fraction
    entropy: Fraction
    source: PredictionSource
    milliseconds: Annotated[float, Meta(ge=0)]
    time: float
    picture: Text = ""


class LastPrediction(msgspec.Struct, frozen=True):
    """One of the last predictions of a device, without the image and its name.

    Attributes:
        label: name of the class.
        probability: probability of that class.
        source: as in a `PredictionReport`.
        time: seconds since the epoch, by the device's clock.
    """

    label: Annotated[str, Meta(max_length=LONGEST_CLASS_NAME)]
    probability: Fraction
    source: PredictionSource
    time: EpochSeconds


class Serving(JsonMessage, frozen=True):
    """Status of a device's predictions: published every few seconds, and by the broker as its last will.

    Attributes:
        state: `offline` in the last will and in the farewell.
        instance: number of the process; a process that started later has a greater one.
        time: seconds since the epoch, by the device's clock.
        per_minute: images a minute over the last minutes.
        latency: median of the milliseconds from an image to its prediction, over the last minutes.
        offloaded_share: share of these images that were offloaded.
        fallback_share: share of these images that were offloaded without a prediction of the trunk in time.
        last: the last predictions, the newest first.
        dropped: images that this process has dropped for newer ones.
    """

    state: Literal["online", "offline"]
    instance: Count
    time: EpochSeconds = 0.0
    per_minute: NonNegative = 0.0
    latency: NonNegative | None = None
    offloaded_share: Fraction | None = None
    fallback_share: Fraction | None = None
    last: Annotated[tuple[LastPrediction, ...], Meta(max_length=MOST_LAST)] = ()
    dropped: Count = 0


class PredictedState(JsonMessage, frozen=True):
    """The class on which several images in a row agree; it changes less often than predictions.

    Attributes:
        label: name of the class, which may be a class of images that show none of the others; `unsure`: the
            images do not agree, or the model is uncertain.
        unsure: whether `label` stands for no class.
        confidence: mean probability of the class over those of the latest images that show it; 0 if there is
            no class (`unsure`).
        since: start of the state, in seconds since the epoch by the device's clock.
        time: time of the latest message, likewise.
    """

    label: Annotated[str, Meta(max_length=LONGEST_CLASS_NAME)]
    confidence: Fraction
    since: EpochSeconds
    time: EpochSeconds
    unsure: bool = False
