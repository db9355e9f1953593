"""`splitee simulate`: compare the fleet's strategies with each other and with baselines, without a broker."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from splitee.cli.bounds import whole
from splitee.cli.run_flags import build_run_spec, run_setting, run_settings
from splitee.cli.settings import setting, settings_file
from splitee.cli.words import percent, span
from splitee.durable import StateDirectory
from splitee.errors import ConfigError
from splitee.networks.split import build_network
from splitee.protocol.codecs import CODECS
from splitee.protocol.run_spec import RunSpec
from splitee_device.data.sources import open_source
from splitee_lab.demo.fleet import spread_cuts
from splitee_lab.local.processes import signals_unwind
from splitee_lab.methods.hostile import HOSTILE
from splitee_lab.methods.registry import BASELINES, STRATEGIES
from splitee_lab.presets import protocol_option
from splitee_lab.report import comparison_page
from splitee_lab.simulate.jobs import (
    Job,
    News,
    PartStore,
    PictureChoice,
    Pictures,
    check_partition,
    open_pictures,
    parse_hostile,
    run_all,
)
from splitee_lab.simulate.partition import Partition
from splitee_lab.simulate.results import summarize
from splitee_lab.simulate.targets import targets_of
from splitee_server.commands.learning_flags import (
    learning_settings,
    strategy_setting,
    threshold_setting,
    weights_setting,
)
from splitee_server.learning.initial.begin import with_weights
from splitee_server.learning.initial.weights import Found


def _names(known: Sequence[str]) -> Callable[[click.Context, click.Parameter, str], tuple[str, ...]]:
    """A callback for names with commas between, each once."""

    def parse(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[str, ...]:
        names = [name.strip() for name in value.split(",") if name.strip()]
        for name in names:
            if name not in known:
                raise click.BadParameter(f"expected some of {', '.join(known)}, with commas; got {name!r}")
        return tuple(dict.fromkeys(names))

    return parse


def _numbers(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\s*[0-9]{1,9}\s*(,\s*[0-9]{1,9}\s*)*", value):
        raise click.BadParameter(f"expected whole numbers with commas, such as 1,2,3; got {value!r}")
    return tuple(map(int, value.split(",")))


def _partitions(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[str, ...]:
    texts = tuple(dict.fromkeys(text.strip() for text in value.split(",")))
    for text in texts:
        Partition.parse(text)
    return texts


def _cuts(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...] | None:
    return None if value == "auto" else _numbers(context, parameter, value)


def _hostile(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    parse_hostile(value)
    return value


@click.command()
@protocol_option
@settings_file
@setting(
    "--data",
    default="builtin:fashion-mnist",
    metavar="SPEC",
    help="DIR, FILE.parquet, torchvision:NAME:ROOT or builtin:NAME.",
)
@setting("--test", metavar="SPEC", help="All of this is held out instead of a part of --data.")
@setting("--samples", type=whole(2), help="Training images of all clients together, at most.")
@setting("--test-samples", type=whole(1), help="Held-out images, at most.")
@setting("--clients", type=whole(1, 10_000), default=6)
@setting(
    "--cuts", default="auto", metavar="LIST", callback=_cuts, help="The clients' in turn, such as 3,5,7."
)
@setting(
    "--partition",
    "partitions",
    default="iid",
    metavar="LIST",
    callback=_partitions,
    help="Of iid, dirichlet:ALPHA, shards:K; each of several has a folder of its own in --out.",
)
@setting(
    "--hostile",
    default="",
    metavar="COUNT:KIND",
    callback=_hostile,
    help=f"So many clients harm the others: {', '.join(HOSTILE)}; accuracies are those of the others.",
)
@setting(
    "--strategy",
    default="sequential,averaging",
    metavar="LIST",
    callback=_names(list(STRATEGIES)),
    help=f"Of {', '.join(STRATEGIES)}.",
)
@setting(
    "--baselines",
    default="centralized,fedavg",
    metavar="LIST",
    callback=_names(list(BASELINES)),
    help=f"Of {', '.join(BASELINES)}; empty: none.",
)
@setting("--seeds", default="1", metavar="LIST", callback=_numbers, help="Such as 1,2,3.")
@run_setting("network", default="resnet18")
@run_setting("stem")
@run_settings("input_shape", "fit")
@run_setting("rounds", default=5)
@run_settings("batch_size", "steps")
@strategy_setting("order")
@weights_setting
@learning_settings
@run_setting("codec", type=click.Choice(CODECS), help="Of the features on the wire.")
@threshold_setting
@setting("--evaluate-every", type=whole(1), default=1, help="Rounds; the last one always is.")
@setting("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", help="cuda: untried so far.")
@setting(
    "--workers",
    type=whole(1),
    help="Runs at once, a thread each.  [default: all cores; 1 with --device cuda]",
)
@setting(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="For results.json, report.html and each run's result; what is there is not run again.",
)
def simulate(
    data: str,
    test: str | None,
    samples: int | None,
    test_samples: int | None,
    clients: int,
    cuts: tuple[int, ...] | None,
    partitions: tuple[str, ...],
    hostile: str,
    strategy: tuple[str, ...],
    baselines: tuple[str, ...],
    seeds: tuple[int, ...],
    evaluate_every: int,
    device: str,
    workers: int | None,
    weights: str | None,
    out: Path,
    **run: Any,
) -> None:
    """Train fleets in this process's children, without a broker: the fleet's own trainer and strategies.

    Each strategy and each baseline is run with every seed, on the same pictures; ends with a table of means
    over the seeds. Started again with the same --out, it runs only what is missing.
    """
    logging.getLogger("splitee_device").setLevel(logging.WARNING)
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no GPU here; give --device cpu")
    if workers is None:
        workers = 1 if device == "cuda" else len(os.sched_getaffinity(0))
    methods = [*strategy, *baselines]
    if not methods:
        raise ConfigError("nothing to run: give --strategy, --baselines, or both")
    if hostile and baselines:
        raise ConfigError('--hostile is for strategies, not for baselines: give --baselines ""')
    if parse_hostile(hostile)[0] >= clients:
        raise ConfigError(f"--hostile {hostile}: expected an honest client, of {clients}")
    classes = len(open_source(data).class_names)
    spec, found = with_weights(build_run_spec(run="simulated", num_classes=classes, **run), weights)
    cuts = _checked_cuts(spec, cuts)
    choice = PictureChoice(data, test, samples, test_samples)
    console = Console()
    directory = StateDirectory(out)
    try:
        pictures = open_pictures(choice, spec)
        for partition in partitions:
            jobs = [
                Job(
                    method,
                    msgspec.structs.replace(spec, seed=seed)
                    if method in BASELINES
                    else msgspec.structs.replace(spec, strategy=method, seed=seed),
                    choice,
                    clients,
                    cuts,
                    partition,
                    evaluate_every,
                    device,
                    hostile,
                )
                for seed in dict.fromkeys(seeds)
                for method in methods
            ]
            folder = out / partition.replace(":", "-") if len(partitions) > 1 else out
            folder.mkdir(exist_ok=True)
            _compare(jobs, pictures, folder, workers, console, found)
    finally:
        directory.close()


def _compare(
    jobs: Sequence[Job],
    pictures: Pictures,
    out: Path,
    workers: int,
    console: Console,
    found: Found | None,
) -> None:
    """Run what is missing of one partition's jobs; write and print what they came to."""
    for line in check_partition(jobs, pictures):
        console.print(f"warning: {line}", markup=False, soft_wrap=True)
    with signals_unwind(), _Bars(console) as bars:
        parts = run_all(jobs, pictures, PartStore(out), workers, bars.show, found)
    results = summarize(parts)
    targets = targets_of(results, jobs[0].partition)
    comparison_page.write(out, jobs[0], results, targets)
    if jobs[0].hostile:
        console.print(comparison_page.HONEST_ONLY.format(jobs[0].hostile), soft_wrap=True, highlight=False)
    for table in comparison_page.tables(results, targets):
        console.print(table)
        console.print()
    console.print(f"{jobs[0].partition}: report: {out / 'report.html'}", soft_wrap=True, highlight=False)


def _checked_cuts(spec: RunSpec, cuts: tuple[int, ...] | None) -> tuple[int, ...]:
    """The cuts that are wanted, or three depths; an unknown network or cut is named before anything runs."""
    network = build_network(
        spec.network,
        num_classes=spec.num_classes,
        input_shape=spec.input_shape,
        stem=spec.stem,
        device="meta",
    )
    network.freeze(spec.frozen)
    for cut in cuts or ():
        network.check_cut(cut)
    return cuts or tuple(spread_cuts(network.num_layers))


class _Bars:
    """A bar a run with the time that it still takes; without a terminal, a line a finished run."""

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

    def show(self, job: Job, news: News) -> None:
        if job.name not in self._tasks:
            self._tasks[job.name] = self._progress.add_task(job.name, facts="")
        facts = f"accuracy {percent(news.accuracy)}"
        self._progress.update(self._tasks[job.name], completed=news.done, total=news.batches, facts=facts)
        if news.part is not None and not self._console.is_terminal:
            line = f"{job.name}: {facts}, {span(news.part.seconds)}"
            self._console.print(line, soft_wrap=True, highlight=False)
