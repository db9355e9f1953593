# SPDX-License-Identifier: Apache-2.0
"""The process in which a model is tested: `python -m splitee_device.inference.trial_worker SETUP`.

Everything that it needs is imported and read before it gives up opening files. Then it examines the model.
"""

from __future__ import annotations

import os
import sys
import time

import msgspec
import numpy as np
import onnxruntime  # noqa: F401 - it cannot be loaded any more once files cannot be opened
from numpy.random import default_rng

from splitee.errors import ModelError
from splitee.inference.graph_check import parse_checked
from splitee.inference.graph_structure import structure_of
from splitee.inference.graphs import ClientModel
from splitee.inference.manifest import ClientManifest, check_graph_digest
from splitee.samples.storage import Samples
from splitee_device.inference.trial import MOST_IMAGES, Setup, TrialResult
from splitee_device.machine.confinement import confine

BATCH = 8  # images; activations between the layers take most of the memory
FOR_IMAGES = 0.4  # share of the trial's seconds after which no further images are tested


def main() -> None:
    setup = msgspec.json.decode(sys.argv[1], type=Setup)
    manifest, graph = _read(setup.manifest), _read(setup.graph)
    samples = None
    if setup.samples is not None:
        with os.fdopen(setup.samples, "rb") as file:
            samples = Samples.load(file, "samples")
    confine(memory=setup.memory, seconds=setup.seconds)
    try:
        tried = _try(manifest, graph, samples, FOR_IMAGES * setup.seconds)
    except ModelError as error:
        tried = TrialResult(str(error))
    except MemoryError:
        tried = TrialResult(f"it needs more than {setup.memory >> 20} MiB of memory")
    except Exception as error:  # onnx and its runtime raise many kinds of errors for bad models
        tried = TrialResult(f"{type(error).__name__}: {str(error)[:300]}")
    print(msgspec.json.encode(tried).decode(), flush=True)


def _try(manifest: bytes, graph: bytes, samples: Samples | None, seconds: float) -> TrialResult:
    """Raises ModelError, or what onnx and the runtime raise: the model is not sound."""
    known = msgspec.json.decode(manifest, type=ClientManifest)
    check_graph_digest(graph, known.file, known.sha256.get(known.file, "none"))
    structure = structure_of(parse_checked(graph, known.file))
    model = ClientModel.of(known, graph, threads=1)
    samples = _noise(known) if samples is None else samples
    return TrialResult(structure=structure, hits=_hits(model, samples, seconds))


def _hits(model: ClientModel, samples: Samples, seconds: float) -> tuple[bool, ...]:
    """Whether the exit is right, for as many images as `seconds` allow, but at least one batch."""
    if samples.held_out.shape[1:] != tuple(model.manifest.input_shape):
        raise ModelError(
            f"its images are {model.manifest.input_shape}, this device's {samples.held_out.shape[1:]}"
        )
    hits: list[bool] = []
    deadline = time.monotonic() + seconds
    for start in range(0, min(MOST_IMAGES, len(samples.labels)), BATCH):
        end = start + BATCH
        features, logits = model(samples.held_out[start:end])
        if not (np.isfinite(features).all() and np.isfinite(logits).all()):
            raise ModelError("its predictions for this device's images are not finite")
        hits += (logits.argmax(axis=1) == samples.labels[start:end]).tolist()
        if time.monotonic() > deadline:
            break
    return tuple(hits)


def _noise(manifest: ClientManifest) -> Samples:
    """Images of no known class, for a device that keeps none."""
    images = default_rng(0).integers(0, 256, (4 * BATCH, *manifest.input_shape), dtype=np.uint8)
    return Samples(images, np.full(len(images), -1), images)


def _read(number: int) -> bytes:
    with os.fdopen(number, "rb") as file:
        return file.read()


if __name__ == "__main__":
    main()
