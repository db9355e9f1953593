# SPDX-License-Identifier: Apache-2.0
"""The bundle of a device's model for transfer: manifest and graph as one piece of bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from splitee.inference.manifest import MANIFEST, ClientManifest, read_graph, read_manifest
from splitee.protocol.encoding import MAX_PACKED


class Bundle(msgspec.Struct, frozen=True):
    """A device's model for transfer: the manifest, and the graph that goes into service."""

    manifest: Annotated[bytes, msgspec.Meta(max_length=1 << 20)]
    graph: Annotated[bytes, msgspec.Meta(max_length=MAX_PACKED)]


def bundle_head(directory: Path, manifest: ClientManifest) -> tuple[bytes, bytes]:
    """A bundle's bytes before the graph, and the graph, which many devices may share.

    Raises ModelError: the exported model is damaged.
    """
    graph = read_graph(directory, manifest.file, manifest.sha256)
    bundle = msgspec.msgpack.encode(Bundle((directory / MANIFEST).read_bytes(), graph))
    return bundle[: len(bundle) - len(graph)], graph


def pack_bundle(directory: Path) -> bytes:
    """An exported model as a bundle. Raises ModelError: it is missing or damaged."""
    manifest = read_manifest(directory, ClientManifest)
    graph = read_graph(directory, manifest.file, manifest.sha256)
    return msgspec.msgpack.encode(Bundle((directory / MANIFEST).read_bytes(), graph))
