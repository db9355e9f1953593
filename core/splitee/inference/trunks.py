# SPDX-License-Identifier: Apache-2.0
"""A server's exported trunks on ONNX Runtime: features of a device in, logits out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitee.errors import ModelError
from splitee.inference.graphs import FEATURES, LOGITS, check_signature, open_session
from splitee.inference.manifest import TrunkManifest, read_graph, read_manifest
from splitee.inference.uncertainty import Array


@dataclass(frozen=True)
class Entry:
    """The entry of a device's features: the trunk's name, the cut, and the shape of a sample there."""

    trunk: str
    cut: int
    feature_shape: tuple[int, ...]


class TrunkModels:
    """The trunks of a model directory; each is loaded when it is first used."""

    def __init__(self, directory: Path, *, threads: int | None = None) -> None:
        """Raises ModelError: there is no manifest, or one of its graphs is missing or damaged."""
        self.manifest = read_manifest(directory, TrunkManifest)
        self._directory = directory
        self._threads = threads
        self._sessions: dict[str, Any] = {}
        for device, name in self.manifest.devices.items():
            if name not in self.manifest.trunks:
                raise ModelError(f"{directory}: its manifest has no trunk {name}, which {device} needs")
        for name in self.manifest.trunks:
            read_graph(directory, name, self.manifest.sha256)

    @property
    def run(self) -> str:
        return self.manifest.run

    @property
    def round(self) -> int:
        return self.manifest.round

    def entry(self, device: str) -> Entry | None:
        """The trunk that continues a device's client network; None: it took no part in the run."""
        name = self.manifest.devices.get(device)
        if name is None:
            return None
        graph = self.manifest.trunks[name]
        return Entry(name, graph.cut, tuple(graph.feature_shape))

    def logits(self, trunk: str, features: Array) -> Array:
        """Features (B, *feature_shape) -> logits (B, classes). Raises ModelError: the graph does not load."""
        if trunk not in self._sessions:
            self._sessions[trunk] = self._open(trunk)
        logits: Array = self._sessions[trunk].run([LOGITS], {FEATURES: features})[0]
        return logits

    def _open(self, name: str) -> Any:
        path = str(self._directory / name)
        session = open_session(read_graph(self._directory, name, self.manifest.sha256), path, self._threads)
        shape = tuple(self.manifest.trunks[name].feature_shape)
        check_signature(session, path, {FEATURES: shape}, {LOGITS: (len(self.manifest.class_names),)})
        return session
