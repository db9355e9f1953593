"""Messages of inference and of models on their way to devices; those of training are in messages.py."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from splitee.protocol.codecs import EncodedTensor
from splitee.protocol.encoding import MAX_PACKED, JsonMessage, PackedMessage
from splitee.protocol.fields import Count, Digest, Fraction, Positive, Text


class InferRequest(PackedMessage, frozen=True):
    """`devices/ID/infer`: features (B, ...) that a device's exit is not sure of; the trunk shall answer."""

    run: Annotated[str, Meta(max_length=100)]
    cut: Positive
    features: EncodedTensor


class InferAnswer(PackedMessage, frozen=True):
    """To an InferRequest's response topic: the trunk's logits (B, classes), or why there are none."""

    run: Annotated[str, Meta(max_length=100)]
    round: Count  # that the trunk is of
    logits: EncodedTensor | None = None
    error: Text = ""
    together: Count = 0  # samples that shared the forward pass


class ModelOffer(JsonMessage, frozen=True):
    """`devices/ID/inbox/model`, retained: a model that the device shall fetch and put into service."""

    release: Digest  # SHA-256 of the bundle
    size: Annotated[int, Meta(ge=1, le=MAX_PACKED)]  # bytes


class ModelWant(JsonMessage, frozen=True):
    """`devices/ID/model-want`: the device has the first `offset` bytes of a release; it asks for more."""

    release: Digest
    offset: Annotated[int, Meta(ge=0, le=MAX_PACKED)]


class ModelPart(PackedMessage, frozen=True):
    """`devices/ID/inbox/model-part`: bytes of a release from `offset` on."""

    release: Digest
    offset: Annotated[int, Meta(ge=0, le=MAX_PACKED)]
    data: Annotated[bytes, Meta(min_length=1)]


class ModelReport(JsonMessage, frozen=True):
    """`devices/ID/model`, retained: what became of a release on its device."""

    release: Digest
    state: Literal["in service", "refused", "rolled back"]
    reason: Text = ""


class PredictionReport(JsonMessage, frozen=True):
    """`devices/ID/predictions`: one picture's answer, as `splitee predict --json` prints it."""

    picture: Text
    label: Text
    probability: Fraction
    entropy: Fraction
    source: Literal["exit", "trunk", "local-fallback"]
    milliseconds: Annotated[float, Meta(ge=0)]
    time: float  # seconds since the epoch, by the device's clock
