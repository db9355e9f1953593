# SPDX-License-Identifier: Apache-2.0
"""The description of an exported model: `manifest.json` beside the graphs, read before any of them.

A device's model directory holds `client.onnx` (images -> features, logits), perhaps `client-int8.onnx`, and
`samples.npz`. A server's holds one graph (features -> logits) for each trunk: `trunk-cut-3.onnx` where all
devices with that cut share it (Sequential), `trunk-DEVICE.onnx` where each has its own (Averaging).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from splitee.durable import write_atomically
from splitee.errors import ModelError
from splitee.inference.combination import TRUNK_ALONE, Combination
from splitee.protocol.accuracies import ReleasedThreshold
from splitee.protocol.fields import Codec, Count, Digest, Fit, Fraction, Name, Positive, Text
from splitee.samples.fitting import Preparation, Region
from splitee.validation_errors import format_error

MANIFEST = "manifest.json"
CLIENT = "client.onnx"
CLIENT_INT8 = "client-int8.onnx"

# Of a graph: a delivered model must not bring other files of its directory, such as the result of a trial.
FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,94}\.onnx\Z")]
Shape = Annotated[tuple[Positive, ...], Meta(min_length=1, max_length=5)]
Labels = Annotated[
    tuple[Annotated[str, Meta(min_length=1, max_length=200)], ...], Meta(min_length=2, max_length=10_000)
]
Measure = Literal["entropy", "confidence"]


class Parity(msgspec.Struct, frozen=True, kw_only=True):
    """The difference between the graph's outputs and torch's, on `samples` inputs, alone and in batches."""

    inputs: Literal["pictures", "features", "random"]
    samples: Positive
    max_error: float  # over features and logits, as a share of the largest value torch gives
    same_label: Fraction
    same_decision: Fraction  # to take the exit's prediction, at the threshold


class Quantization(msgspec.Struct, frozen=True, kw_only=True):
    """int8 compared with fp32: the exit's accuracy on the held-out images, and the time per image."""

    accuracy_fp32: Fraction
    accuracy_int8: Fraction
    kept: bool
    fp32_ms: float | None = None  # median, batch 1; None: not timed
    int8_ms: float | None = None


class Point(msgspec.Struct, frozen=True):
    """Adaptive inference at one threshold, on held-out images."""

    threshold: Fraction
    accuracy: Fraction
    offload_share: Fraction


class ClientManifest(msgspec.Struct, frozen=True, kw_only=True):
    """A device's model: client network and exit in one graph."""

    kind: Literal["client"]
    run: Text
    round: Count
    device: Name
    network: Text
    cut: Positive
    stage: Text
    class_names: Labels
    input_shape: Annotated[tuple[Positive, ...], Meta(min_length=3, max_length=3)]  # (C, H, W)
    feature_shape: Shape  # of one sample
    mean: Annotated[tuple[float, ...], Meta(min_length=1, max_length=4)]  # of pixels in 0..1
    std: Annotated[tuple[Annotated[float, Meta(gt=0)], ...], Meta(min_length=1, max_length=4)]
    fit: Fit = "crop"  # how an image is brought to input_shape
    codec: Codec  # of features that are sent to the server
    measure: Measure  # of the exit's uncertainty
    threshold: Fraction  # uncertainty at or below which the exit's prediction is taken
    threshold_images: Count = 0  # held-out images from which it was chosen; 0: it is the run's setting
    expected_offload: Fraction | None = None  # share of held-out images above it
    expected_accuracy: Fraction | None = None  # of adaptive inference on held-out images
    combination: Combination = TRUNK_ALONE  # of the predictions of exit and trunk for an image above it
    calibration: Annotated[tuple[Point, ...], Meta(max_length=1000)]
    opset: Positive
    file: FileName  # the graph in service
    sha256: dict[FileName, Digest]
    parity: Parity
    quantization: Quantization | None
    versions: dict[Text, Text]

    @property
    def released(self) -> ReleasedThreshold:
        """The threshold up to which the model predicts by itself."""
        return ReleasedThreshold(
            threshold=self.threshold,
            images=self.threshold_images,
            expected_offload=self.expected_offload,
            expected_accuracy=self.expected_accuracy,
        )

    def preparation(self, region: Region | None) -> Preparation:
        """The preparation of images before normalisation. `region`: of the image; None: all of it."""
        channels, height, width = self.input_shape
        return Preparation((channels, height, width), self.fit, region)


class TrunkGraph(msgspec.Struct, frozen=True, kw_only=True):
    """One trunk's graph, entered at `cut` by features of `feature_shape`."""

    cut: Positive
    feature_shape: Shape
    parity: Parity


class TrunkManifest(msgspec.Struct, frozen=True, kw_only=True):
    """A server's trunks, and which of them continues each device's client network."""

    kind: Literal["trunk"]
    run: Text
    round: Count
    network: Text
    class_names: Labels
    opset: Positive
    devices: dict[Name, FileName]
    trunks: dict[FileName, TrunkGraph]
    sha256: dict[FileName, Digest]
    versions: dict[Text, Text]


M = TypeVar("M", ClientManifest, TrunkManifest)


def read_manifest(directory: Path, kind: type[M]) -> M:
    """The manifest of a model directory. Raises ModelError: there is none, or it is not of this kind."""
    path = directory / MANIFEST
    data = b""
    try:
        data = path.read_bytes()
        return msgspec.json.decode(data, type=kind)
    except OSError as error:
        raise ModelError(
            f"no model at {directory} ({MANIFEST}: {error.strerror}): `splitee export` makes one"
        ) from None
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        whose = "a device's" if kind is ClientManifest else "a server's"
        raise ModelError(
            f"{path}: expected the manifest of {whose} model: {format_error(error, data)}"
        ) from None


def write_manifest(directory: Path, manifest: ClientManifest | TrunkManifest) -> None:
    """Writes the manifest, as the last step of an export: without it the directory is not a model."""
    write_atomically(directory / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=1))


def read_graph(directory: Path, name: str, sha256: dict[str, str]) -> bytes:
    """The bytes of a graph. Raises ModelError when they are not those of the manifest."""
    try:
        data = (directory / name).read_bytes()
    except OSError as error:
        raise ModelError(f"{directory / name}: {error.strerror}: export the model again") from None
    check_graph_digest(data, str(directory / name), sha256.get(name, "none"))
    return data


def check_graph_digest(data: bytes, name: str, expected: str) -> None:
    """Raises ModelError: the bytes of the graph are not those of its manifest."""
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise ModelError(
            f"{name} is damaged: SHA-256 {found[:12]}... of {len(data)} bytes, its manifest says "
            f"{expected[:12]}...: export or deliver the model again"
        )
