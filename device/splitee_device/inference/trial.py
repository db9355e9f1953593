# SPDX-License-Identifier: Apache-2.0
"""Tests a model in a process of its own that has limits, because the model may be hostile.

The process receives the manifest, the graph and the device's own images as open files, and prints one line.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import msgspec

from splitee.cli.plain_text import plain
from splitee.errors import ModelError
from splitee.inference.manifest import MANIFEST
from splitee.inference.structure import Structure
from splitee_device.machine.confinement import MAX_OUTPUT
from splitee_device.machine.hardware import available_memory, least

SECONDS = 75  # longest duration of a trial; two in a row stay below the service's watchdog of 3 minutes
ROOM = 512 << 20  # bytes of memory, in addition
COPIES = 4  # of the graph that exist while it is read, checked and loaded
MOST_IMAGES = 256  # that a model is tested on


class TrialResult(msgspec.Struct, frozen=True):
    """The result of a trial.

    Attributes:
        refused: why the model is not sound; "": it is sound.
        structure: of its graph.
        hits: for each image, whether the exit's prediction was right; false if the label is unknown.
    """

    refused: str = ""
    structure: Structure | None = None
    hits: Annotated[tuple[bool, ...], msgspec.Meta(max_length=MOST_IMAGES)] = ()


class Setup(msgspec.Struct, frozen=True):
    """The arguments of the process: open files by their descriptors, and its limits."""

    manifest: int
    graph: int
    samples: int | None
    memory: int
    seconds: int


def try_model(folder: Path, file: str, samples: Path, *, seconds: int = SECONDS) -> TrialResult:
    """Test the graph `file` of a model directory on the device's images, if `samples` exists.

    Args:
        seconds: the longest duration.

    Raises ModelError: it is not sound, or does not finish in time or within its memory.
    """
    with ExitStack() as stack:
        manifest, graph = (stack.enter_context((folder / name).open("rb")) for name in (MANIFEST, file))
        images = stack.enter_context(samples.open("rb")) if samples.exists() else None
        setup = Setup(
            manifest.fileno(),
            graph.fileno(),
            images.fileno() if images else None,
            _memory(os.fstat(graph.fileno()).st_size),
            seconds,
        )
        tried = _run(setup)
    if tried.refused:
        raise ModelError(plain(tried.refused))
    return tried


def _memory(graph: int) -> int:
    """Bytes that the trial of a graph of so many bytes may use, or what is available if that is less."""
    available = available_memory().available
    return least(ROOM + COPIES * graph, available) or ROOM


def _run(setup: Setup) -> TrialResult:
    files = tuple(number for number in (setup.manifest, setup.graph, setup.samples) if number is not None)
    with tempfile.TemporaryFile() as output:
        with _signals_blocked():
            process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "splitee_device.inference.trial_worker"),
                    msgspec.json.encode(setup),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.DEVNULL,
                pass_fds=files,
                env=_environment(),
                cwd="/",
            )
        try:
            status = process.wait(setup.seconds)
        except subprocess.TimeoutExpired:
            return TrialResult(f"it did not finish within {setup.seconds} s")
        finally:
            process.kill()
            process.wait()
        output.seek(0)
        result = output.read(MAX_OUTPUT)
    if status:
        return TrialResult(_failure_reason(status, setup))
    try:
        return msgspec.json.decode(result, type=TrialResult)
    except msgspec.MsgspecError:
        return TrialResult("its trial ended without a result")


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """A process that is started within it never receives the signals that stop the service.

    systemd sends them to all processes of the service, and a terminal does on Ctrl-C. A sound model whose
    trial they ended would be reported as refused.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _environment() -> dict[str, str]:
    """An environment without passwords, only with what the trial needs. One thread is enough."""
    path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path if entry)
    return {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _failure_reason(status: int, setup: Setup) -> str:
    if status in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"its trial took more than {setup.seconds} s, or more memory than is available"
    if status < 0:
        name = signal.Signals(-status).name
        return f"its trial ended with {name}; it could use {setup.memory >> 20} MiB of memory"
    return f"its trial ended with status {status}"
