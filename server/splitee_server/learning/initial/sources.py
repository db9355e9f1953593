# SPDX-License-Identifier: Apache-2.0
"""The forms in which `--weights` names the source of a run's initial weights."""

from __future__ import annotations

from pathlib import Path

from splitee.errors import ConfigError
from splitee.protocol.run_spec import RunSpec
from splitee_server.learning.initial.earlier_run import read_run
from splitee_server.learning.initial.files import read_file
from splitee_server.learning.initial.published import read_published
from splitee_server.learning.initial.weights import SourceWeights

TORCHVISION = "torchvision"
RUN = "run:"


def read_weights(source: str, spec: RunSpec) -> SourceWeights:
    """Raises ConfigError or StateError: the source cannot be loaded, or is none."""
    if source == TORCHVISION:
        return read_published(spec.network)
    if source.startswith(RUN):
        return read_run(Path(source.removeprefix(RUN)).expanduser(), spec)
    if source.partition(":")[0] in ("http", "https"):
        raise ConfigError(f"--weights {source}: download the file first, and give its path")
    return read_file(Path(source).expanduser())


def label(source: str) -> str:
    """How RunSpec.weights names a source: without the folders of this machine."""
    kind = RUN if source.startswith(RUN) else ""
    return kind + Path(source.removeprefix(kind)).name
