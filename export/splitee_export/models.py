# SPDX-License-Identifier: Apache-2.0
"""Makes model directories from states: graphs, parity, int8, and the manifest last."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec.structs import replace

from splitee.durable import write_atomically
from splitee.errors import ConfigError, StateError
from splitee.inference.graphs import ClientModel
from splitee.inference.manifest import (
    CLIENT,
    CLIENT_INT8,
    MANIFEST,
    ClientManifest,
    Quantization,
    TrunkGraph,
    TrunkManifest,
    read_graph,
    read_manifest,
    write_manifest,
)
from splitee.inference.uncertainty import Array
from splitee.protocol.accuracies import ReleasedThreshold
from splitee.protocol.codecs import AUTO, DEFAULT
from splitee.samples.fitting import Pixels, Region
from splitee.samples.images import normalize
from splitee.samples.storage import SAMPLES, Samples, save_region
from splitee_export.calibration import Calibration
from splitee_export.graphs import OPSET, ClientGraph, GraphRunner, client_graph, run_torch, trunk_graph
from splitee_export.parity import check_parity
from splitee_export.quantize import accuracy, time_both, to_int8
from splitee_export.states import DeviceState, ServerState

RANDOM_FEATURES = 64  # random inputs to test a trunk without features of images
NOISE = 64  # images of noise to test a client network without other images

log = logging.getLogger(__name__)


class _Kind(msgspec.Struct):
    kind: Literal["client", "trunk"]


@dataclass(frozen=True)
class Int8Policy:
    """When the int8 graph goes into service: if the exit's accuracy is at most `max_drop` below fp32's.

    `benchmark`: it must also be faster on this machine.
    """

    max_drop: float = 0.01
    benchmark: bool = False


def export_client(
    state: DeviceState,
    samples: Samples | None,
    out: Path,
    *,
    region: Region | None = None,
    int8: Int8Policy | None = None,
    calibration: Calibration | None = None,
) -> ClientManifest:
    """Writes a device's model directory.

    Args:
        samples: of the device's images; None: there are none, and the graph is tested on noise.
        region: the part of each image that the device uses; None: all of it.
        calibration: when the exit predicts; None: up to the run's threshold.

    Raises:
        ConfigError: `out` holds a server's trunks.
        ModelError: torch cannot export the network, or the graph's results differ from torch's.
    """
    _check_kind(out, "client")
    spec = state.spec
    graph = client_graph(state.client, state.exit, spec.input_shape)
    run = GraphRunner(graph, CLIENT)
    test_images = _noise(spec.input_shape) if samples is None else samples.held_out
    inputs = normalize(test_images, spec.mean, spec.std)
    torch_run = partial(run_torch, ClientGraph(state.client, state.exit))
    kind: Literal["pictures", "random"] = "random" if samples is None else "pictures"
    parity = check_parity(CLIENT, torch_run, run, inputs, kind, threshold=spec.threshold)
    graphs = {CLIENT: graph}
    quantization = None
    if int8 is not None and samples is not None:
        int8_graph = to_int8(graph, normalize(samples.training, spec.mean, spec.std))
        quantization = _compare_int8(graph, int8_graph, inputs, samples, int8)
        if quantization.kept:
            graphs[CLIENT_INT8] = int8_graph
    manifest = ClientManifest(
        kind="client",
        run=spec.run,
        round=state.round,
        device=state.device,
        network=spec.network,
        cut=state.cut,
        stage=state.network.stages[state.cut - 1].name,
        class_names=spec.class_names,
        input_shape=spec.input_shape,
        feature_shape=state.network.stages[state.cut - 1].feature_shape,
        mean=spec.mean,
        std=spec.std,
        fit=spec.fit,
        codec=DEFAULT if spec.codec == AUTO else spec.codec,
        measure="entropy",
        **_threshold(calibration or Calibration(ReleasedThreshold(threshold=spec.threshold))),
        opset=OPSET,
        file=CLIENT_INT8 if CLIENT_INT8 in graphs else CLIENT,
        sha256=_digests(graphs),
        parity=parity,
        quantization=quantization,
        versions=_versions(),
    )
    files = graphs if samples is None else {**graphs, SAMPLES: samples.encode()}
    _write(out, files, manifest, region)
    return manifest


def export_copy(model: Path, device: str, out: Path, calibration: Calibration) -> ClientManifest:
    """Writes the model directory of a device whose weights are those of the model exported to `model`.

    Raises:
        ModelError: that model is damaged.
    """
    source = read_manifest(model, ClientManifest)
    graphs = {CLIENT: read_graph(model, CLIENT, source.sha256)}
    manifest = replace(source, device=device, **_threshold(calibration))
    _write(out, graphs, manifest)
    return manifest


def export_trunks(state: ServerState, out: Path, clients: Sequence[Path] = ()) -> TrunkManifest:
    """Writes a server's model directory: one graph per trunk; devices that share a trunk share its graph.

    Args:
        clients: exported models of devices; each trunk is tested on the features of its device's images.
            Trunks of other devices are tested on random features, as their manifest says.

    Raises:
        ModelError: torch cannot export a trunk, or a graph's results differ from torch's.
        ConfigError: a client is of another run or cut, or `out` holds a device's model.
    """
    _check_kind(out, "trunk")
    inputs = dict(_features(state, path) for path in clients)
    devices = _trunk_files(state)
    graphs: dict[str, bytes] = {}
    trunks: dict[str, TrunkGraph] = {}
    for name in sorted(set(devices.values())):
        users = sorted(device for device, file in devices.items() if file == name)
        log.info("%s: for %s", name, ", ".join(users))
        test_device = next((device for device in users if device in inputs), None)
        cut = state.cuts[users[0]]
        shape = state.network.stages[cut - 1].feature_shape
        features = _random_features(shape) if test_device is None else inputs[test_device]
        trunk = state.trunks[users[0]]
        graphs[name] = trunk_graph(trunk, shape)
        kind: Literal["features", "random"] = "random" if test_device is None else "features"
        parity = check_parity(
            name, partial(run_torch, trunk), GraphRunner(graphs[name], name), features, kind
        )
        trunks[name] = TrunkGraph(cut=cut, feature_shape=shape, parity=parity)
    manifest = TrunkManifest(
        kind="trunk",
        run=state.spec.run,
        round=state.round,
        network=state.spec.network,
        class_names=state.spec.class_names,
        opset=OPSET,
        devices=devices,
        trunks=trunks,
        sha256=_digests(graphs),
        versions=_versions(),
    )
    _write(out, graphs, manifest)
    return manifest


def _threshold(calibration: Calibration) -> dict[str, Any]:
    """The threshold's fields of a manifest."""
    return {
        "threshold": calibration.chosen.threshold,
        "threshold_images": calibration.chosen.images,
        "expected_offload": calibration.chosen.expected_offload,
        "expected_accuracy": calibration.chosen.expected_accuracy,
        "combination": calibration.combination,
        "calibration": calibration.points,
    }


def _trunk_files(state: ServerState) -> dict[str, str]:
    """Each device's trunk file: named by the cut, and by its first device if a cut has several trunks."""
    first = state.first_user
    trunks_at = Counter(state.cuts[device] for device in set(first.values()))
    files = {}
    for device, cut in state.cuts.items():
        own = "" if trunks_at[cut] == 1 else f"-{first[device]}"
        files[device] = f"trunk-cut-{cut}{own}.onnx"
    return files


def _compare_int8(
    fp32: bytes, int8: bytes, inputs: Array, samples: Samples, policy: Int8Policy
) -> Quantization:
    """Compares the two graphs on held-out images, and their times on this machine."""
    runners = GraphRunner(fp32, CLIENT), GraphRunner(int8, CLIENT_INT8)
    before, after = (accuracy(run, inputs, samples.labels) for run in runners)
    result = Quantization(accuracy_fp32=before, accuracy_int8=after, kept=before - after <= policy.max_drop)
    if not policy.benchmark:
        return result
    fp32_ms, int8_ms = time_both(*runners, inputs)
    return replace(result, fp32_ms=fp32_ms, int8_ms=int8_ms, kept=result.kept and int8_ms < fp32_ms)


def _features(state: ServerState, path: Path) -> tuple[str, Array]:
    model, samples = ClientModel(path, file=CLIENT), Samples.read(path)
    source = model.manifest
    if (source.run, source.cut) != (state.spec.run, state.cuts.get(source.device)):
        raise ConfigError(
            f"--client {path}: it is of {source.device} in run {source.run} at cut {source.cut}; this server "
            f"has run {state.spec.run}, with {source.device} at cut {state.cuts.get(source.device)}"
        )
    return source.device, model(samples.held_out)[0]


def _noise(shape: Sequence[int]) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (NOISE, *shape), dtype=np.uint8)


def _random_features(shape: Sequence[int]) -> Array:
    """Not negative, as after a ReLU."""
    generator = np.random.default_rng(0)
    return np.abs(generator.standard_normal((RANDOM_FEATURES, *shape), dtype=np.float32))


def _check_kind(out: Path, kind: Literal["client", "trunk"]) -> None:
    """Raises ConfigError: there is a model of the other kind, which would be partly overwritten."""
    try:
        held = msgspec.json.decode((out / MANIFEST).read_bytes(), type=_Kind).kind
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return
    if held != kind:
        whose = "a device's model" if held == "client" else "a server's trunks"
        raise ConfigError(f"--out {out} holds {whose}: give this model its own directory")


def _write(
    out: Path,
    files: dict[str, bytes],
    manifest: ClientManifest | TrunkManifest,
    region: Region | None = None,
) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / MANIFEST).unlink(missing_ok=True)
    except OSError as error:
        raise StateError(f"cannot write to {out}: {error.strerror}; choose another --out") from None
    for name, data in files.items():
        write_atomically(out / name, data)
    save_region(out, region)
    write_manifest(out, manifest)


def _digests(graphs: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(graph).hexdigest() for name, graph in graphs.items()}


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("hetero-splitee", "torch", "onnx", "onnxscript", "onnxruntime")}
