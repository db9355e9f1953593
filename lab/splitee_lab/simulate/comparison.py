# SPDX-License-Identifier: Apache-2.0
"""A comparison from its settings to its report: missing runs are made, with a progress bar each."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from splitee.cli.plain_text import echo, plain
from splitee.cli.precision import has_bf16
from splitee.cli.run_flags import build_run_spec
from splitee.cli.words import percent, span
from splitee.durable import StateDirectory
from splitee.errors import ConfigError
from splitee.networks.split import build_network
from splitee.protocol.fields import Precision
from splitee.protocol.run_spec import RunSpec
from splitee_device.data.sources import open_source
from splitee_lab.demo.fleet import spread_cuts
from splitee_lab.local.processes import signals_unwind
from splitee_lab.methods.names import BASELINES
from splitee_lab.report import comparison_page
from splitee_lab.simulate.jobs import (
    ImageChoice,
    Job,
    JobProgress,
    JobResultStore,
    SharedImages,
    check_partition,
    open_images,
    run_all,
)
from splitee_lab.simulate.partition import too_few
from splitee_lab.simulate.results import summarize
from splitee_lab.simulate.targets import targets_of
from splitee_server.learning.initial.begin import with_weights
from splitee_server.learning.initial.weights import SourceWeights

log = logging.getLogger(__name__)

ANY_CLASSES = 10  # to check cuts with: the number of classes is known only with the images


@dataclass(frozen=True)
class Comparison:
    """What to compare, as in `splitee simulate --help`.

    Attributes:
        cuts: None: up to three depths of the network.
        device: where torch trains.
        resident: devices' trunks in memory at a time, per run; 0: all.
        weights: source of all networks' initial weights; None: the seeds.
    """

    choice: ImageChoice
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    partitions: tuple[str, ...]
    clients: int
    cuts: tuple[int, ...] | None
    hostile: str
    evaluate_every: int
    device: str
    resident: int
    workers: int
    weights: str | None
    out: Path

    def jobs(self, spec: RunSpec, cuts: tuple[int, ...], partition: str) -> Iterator[Job]:
        """Each method with each seed."""
        for seed in self.seeds:
            for method in self.methods:
                of_method = {} if method in BASELINES else {"strategy": method}
                yield Job(
                    method,
                    replace(spec, seed=seed, **of_method),
                    self.choice,
                    self.clients,
                    cuts,
                    partition,
                    self.evaluate_every,
                    self.device,
                    self.hostile,
                )


def compare(wanted: Comparison, settings: Mapping[str, Any], *, quiet: bool = False) -> None:
    """Run what is missing of a comparison; write its reports and print their tables.

    Args:
        settings: of the runs, by their names in RunSpec.
        quiet: show no progress.

    Raises:
        ConfigError, NetworkError, DataError, StateError: as their messages say.
    """
    described = build_run_spec(run="simulated", num_classes=ANY_CLASSES, **settings)
    _check_accelerator(wanted.device, described.precision)
    cuts = _checked_cuts(described, wanted.cuts)
    samples, clients = wanted.choice.samples, wanted.clients
    if samples is not None and samples < clients:
        raise too_few(samples, f"{clients} clients")
    classes = len(open_source(wanted.choice.data).class_names)
    spec, found = with_weights(replace(described, num_classes=classes), wanted.weights)
    console = Console()
    directory = StateDirectory(wanted.out)
    try:
        images = open_images(wanted.choice, spec)
        for partition in wanted.partitions:
            several = len(wanted.partitions) > 1
            folder = wanted.out / partition.replace(":", "-") if several else wanted.out
            folder.mkdir(exist_ok=True)
            jobs = list(wanted.jobs(spec, cuts, partition))
            _compare_partition(
                jobs, images, folder, wanted.workers, console, found, wanted.resident, quiet=quiet
            )
    finally:
        directory.close()


def _check_accelerator(device: str, precision: Precision) -> None:
    """Raises ConfigError: there is no such GPU. A CPU without bfloat16 gives its results, but slowly."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--accelerator cuda: torch finds no GPU here; give --accelerator cpu")
    if (
        precision == "bf16"
        and device == "cuda"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        raise ConfigError("--precision bf16: this GPU has no bfloat16: give --precision fp32")
    if precision == "bf16" and device == "cpu" and not has_bf16():
        log.warning("--precision bf16: this CPU has no bfloat16, and torch emulates it, slower than float32")


def _compare_partition(
    jobs: Sequence[Job],
    images: SharedImages,
    out: Path,
    workers: int,
    console: Console,
    found: SourceWeights | None,
    resident: int,
    *,
    quiet: bool,
) -> None:
    """Run the missing jobs of one partition; write and print the results."""
    for line in check_partition(jobs, images):
        console.print(f"warning: {plain(line)}", markup=False, soft_wrap=True)
    with signals_unwind(), _Bars(Console(quiet=quiet)) as bars:
        parts = run_all(jobs, images, JobResultStore(out), workers, bars.show, found, resident)
    results = summarize(parts)
    targets = targets_of(results, jobs[0].partition)
    comparison_page.write(out, jobs[0], results, targets)
    if jobs[0].hostile:
        console.print(comparison_page.HONEST_ONLY.format(jobs[0].hostile), soft_wrap=True, highlight=False)
    for table in comparison_page.tables(results, targets):
        console.print(table)
        console.print()
    echo(f"{jobs[0].partition}: report: {out / 'report.html'}")


def _checked_cuts(spec: RunSpec, cuts: tuple[int, ...] | None) -> tuple[int, ...]:
    """The wanted cuts, or three depths; an unknown network or cut is reported before anything runs."""
    network = build_network(
        spec.network,
        num_classes=spec.num_classes,
        input_shape=spec.input_shape,
        stem=spec.stem,
        device="meta",
    )
    network.freeze(0 if spec.freeze == "auto" else spec.freeze)
    for cut in cuts or ():
        network.check_cut(cut)
    return cuts or tuple(spread_cuts(network.num_layers))


class _Bars:
    """A progress bar per run, with the remaining time; without a terminal, a line per finished run."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._progress.stop()

    def show(self, job: Job, progress: JobProgress) -> None:
        if job.name not in self._tasks:
            self._tasks[job.name] = self._progress.add_task(job.name, facts="")
        facts = f"accuracy {percent(progress.accuracy)}"
        self._progress.update(
            self._tasks[job.name], completed=progress.done, total=progress.batches, facts=facts
        )
        if progress.result is not None and not self._console.is_terminal:
            line = f"{job.name}: {facts}, {span(progress.result.seconds)}"
            self._console.print(line, soft_wrap=True, highlight=False)
