# SPDX-License-Identifier: Apache-2.0
"""Exported graphs on ONNX Runtime: loading, checking against their manifest, and an exit's uncertainty."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from splitee.errors import ModelError
from splitee.inference.manifest import ClientManifest, read_graph, read_manifest
from splitee.inference.uncertainty import Array, uncertainty
from splitee.samples.fitting import Pixels
from splitee.samples.images import normalize

IMAGES = "pictures"  # the name of a model's input since the first release, so that all releases serve it
FEATURES, LOGITS = "features", "logits"


def open_session(graph: bytes, name: str, threads: int | None = None) -> Any:
    """An ONNX Runtime session on the CPU.

    `threads`: by default all cores but one. Threads that spin while they wait slow a small machine down, and
    the memory arena saves nothing here.

    Raises ModelError when the runtime refuses the graph.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or max(1, (os.cpu_count() or 1) - 1)
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime has a separate exception for each way a graph can be wrong
        reason = str(error).splitlines()[0]
        raise ModelError(f"{name}: ONNX Runtime does not load it ({reason[:300]})") from None


def check_signature(
    session: Any, name: str, inputs: dict[str, tuple[int, ...]], outputs: dict[str, tuple[int, ...]]
) -> None:
    """Raises ModelError if the graph's tensors, without the batch, are not those of its manifest."""
    for what, found, expected in (
        ("inputs", session.get_inputs(), inputs),
        ("outputs", session.get_outputs(), outputs),
    ):
        shapes = {value.name: tuple(value.shape[1:]) for value in found}
        if shapes != expected or any(value.type != "tensor(float)" for value in found):
            raise ModelError(f"{name}: its {what} are {shapes}, its manifest needs {expected} in float32")


class ClientModel:
    """A device's model, loaded and checked: client network and exit."""

    def __init__(self, directory: Path, *, threads: int | None = None, file: str | None = None) -> None:
        """`file`: another graph of the directory than the one in service.

        Raises ModelError: it is missing, damaged, or not what its manifest says.
        """
        manifest = read_manifest(directory, ClientManifest)
        file = file or manifest.file
        self._load(manifest, read_graph(directory, file, manifest.sha256), str(directory / file), threads)

    @classmethod
    def of(cls, manifest: ClientManifest, graph: bytes, *, threads: int | None = None) -> ClientModel:
        """The model of a graph in memory. Raises ModelError: it is not what the manifest says."""
        model = cls.__new__(cls)
        model._load(manifest, graph, manifest.file, threads)
        return model

    def _load(self, manifest: ClientManifest, graph: bytes, name: str, threads: int | None) -> None:
        self.manifest = manifest
        self._session = open_session(graph, name, threads)
        check_signature(
            self._session,
            name,
            {IMAGES: tuple(manifest.input_shape)},
            {FEATURES: tuple(manifest.feature_shape), LOGITS: (len(manifest.class_names),)},
        )

    def __call__(self, images: Pixels) -> tuple[Array, Array]:
        """uint8 (N, C, H, W) -> features (N, *feature_shape) and the exit's logits (N, classes)."""
        inputs = normalize(images, self.manifest.mean, self.manifest.std)
        features, logits = self._session.run([FEATURES, LOGITS], {IMAGES: inputs})
        return features, logits

    def uncertainty(self, logits: Array) -> Array:
        """The exit's uncertainty by the manifest's measure: (N, classes) -> (N,) in 0..1."""
        return uncertainty(logits, self.manifest.measure)
