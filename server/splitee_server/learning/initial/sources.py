# SPDX-License-Identifier: Apache-2.0
"""The forms in which `--weights` names the source of a run's initial weights."""

from __future__ import annotations

from pathlib import Path

from splitee.cli.plain_text import plain
from splitee.errors import ConfigError
from splitee.protocol.run_spec import RunSpec
from splitee_server.learning.initial.earlier_run import read_run
from splitee_server.learning.initial.files import read_file
from splitee_server.learning.initial.published import read_published
from splitee_server.learning.initial.weights import SourceWeights

TORCHVISION = "torchvision"
RUN = "run:"


def read_weights(source: str, spec: RunSpec) -> SourceWeights:
    """Raises ConfigError, NetworkError or StateError: the source cannot be loaded, or is none."""
    if source == TORCHVISION:
        return read_published(spec.network)
    if source.partition(":")[0] in ("http", "https"):
        raise ConfigError(f"--weights {source}: download the file first, and give its path")
    try:
        path = Path(source.removeprefix(RUN)).expanduser()
    except RuntimeError:
        raise ConfigError(f"--weights {source}: there is no user of this name") from None
    try:
        return read_run(path, spec) if source.startswith(RUN) else read_file(path)
    except OSError as error:  # the name is too long, or a folder on the way may not be entered
        raise ConfigError(f"--weights {source}: {error.strerror}") from None


def label(source: str) -> str:
    """How RunSpec.weights names a source: without the folders of this machine, and as valid text."""
    kind = RUN if source.startswith(RUN) else ""
    return kind + plain(Path(source.removeprefix(kind)).name)
