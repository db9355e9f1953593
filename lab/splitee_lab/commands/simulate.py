# SPDX-License-Identifier: Apache-2.0
"""`splitee simulate`: compare the fleet's strategies with each other and with baselines, without a broker."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import click

from splitee.cli.bounds import OutOfBounds, given, whole
from splitee.cli.command import Command, section
from splitee.cli.pairs import require
from splitee.cli.run_flags import run_setting, run_settings
from splitee.cli.settings import renamed, setting, settings_file
from splitee.cli.verbosity import is_quiet, log_options
from splitee.errors import ConfigError
from splitee.protocol.codecs import CODECS
from splitee.protocol.fields import Precision
from splitee.suggestions import did_you_mean
from splitee_lab.methods.names import BASELINES, HOSTILE, parse_hostile
from splitee_lab.presets import protocol_option
from splitee_lab.simulate.partition import Partition
from splitee_server.commands.learning_flags import (
    check_strategy_settings,
    learning_settings,
    strategy_setting,
    threshold_setting,
    weights_setting,
)
from splitee_server.commands.resident_flag import check_resident, resident_setting
from splitee_server.learning.strategies.registry import STRATEGIES


def _names(known: Collection[str]) -> Callable[[click.Context, click.Parameter, str], tuple[str, ...]]:
    """A callback for names separated by commas, each once."""

    def parse(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
        names = [name.strip() for name in value.split(",") if name.strip()]
        for name in names:
            if name not in known:
                expected = f"some of {', '.join(known)}, with commas{did_you_mean(name, known)}"
                raise OutOfBounds(f"{given(name, parameter, context)}: {expected}", context, parameter)
        return tuple(dict.fromkeys(names))

    return parse


def _numbers(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\s*[0-9]{1,9}\s*(,\s*[0-9]{1,9}\s*)*", value):
        expected = "whole numbers with commas, such as 1,2,3"
        raise OutOfBounds(f"{given(value, parameter, context)}: {expected}", context, parameter)
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


@click.command(cls=Command)
@settings_file
@log_options(splitee_device=logging.WARNING)
@section(
    "Images",
    setting(
        "--data",
        default="builtin:fashion-mnist",
        metavar="SPEC",
        help="Images of all clients: DIR, FILE.parquet, torchvision:NAME:ROOT or builtin:NAME.",
    ),
    setting(
        "--test",
        metavar="SPEC",
        help="Source of images that are all held out, written as for --data.",
        show_default="a part of --data",
    ),
    setting(
        "--samples",
        type=whole(2),
        metavar="COUNT",
        help="Largest number of training images of all clients together.",
        show_default="all",
    ),
    setting(
        "--test-samples",
        type=whole(1),
        metavar="COUNT",
        help="Largest number of held-out images.",
        show_default="all",
    ),
    run_setting("fit"),
    setting(
        "--partition",
        "partitions",
        default="iid",
        metavar="LIST",
        callback=_partitions,
        help="Partitions of the images over clients: of iid, dirichlet:ALPHA, shards:K; if there are "
        "several, each has a folder of its own in --out.",
    ),
)
@section(
    "Comparison",
    protocol_option,
    setting("--clients", type=whole(1, 10_000), default=6, metavar="COUNT", help="Number of clients."),
    setting(
        "--cuts",
        default="auto",
        metavar="LIST",
        callback=_cuts,
        help="Cuts of the clients in turn, such as 3,5,7; auto: up to three depths of the network.",
    ),
    setting(
        "--strategy",
        default="sequential,averaging",
        metavar="LIST",
        callback=_names(STRATEGIES),
        help=f"Strategies to compare: of {', '.join(STRATEGIES)}.",
    ),
    strategy_setting("order"),
    setting(
        "--baselines",
        default="centralized,fedavg",
        metavar="LIST",
        callback=_names(BASELINES),
        help=f"Baselines to compare with: of {', '.join(BASELINES)}; empty: none.",
    ),
    setting(
        "--hostile",
        default="",
        metavar="COUNT:KIND",
        callback=_hostile,
        help=f"Number of clients that harm the others, and how: {', '.join(HOSTILE)}; accuracies are those "
        "of the honest ones.",
        show_default="none",
    ),
    setting(
        "--seeds",
        default="1",
        metavar="LIST",
        callback=_numbers,
        help="Seeds; all is run with each of them, such as 1,2,3.",
    ),
    run_setting("rounds", default=5),
    run_settings("sample", "sample_by"),
    setting(
        "--evaluate-every",
        type=whole(1),
        default=1,
        metavar="ROUNDS",
        help="Number of rounds from one evaluation to the next; the last round is always evaluated.",
    ),
)
@section(
    "Network",
    run_setting("network", default="resnet18", metavar="NAME"),
    run_setting("stem"),
    run_setting("input_shape"),
    weights_setting,
    threshold_setting,
    run_setting("codec", type=click.Choice(CODECS), help="Codec of the features on the wire."),
)
@learning_settings
@section(
    "Resources and results",
    setting(
        "--accelerator",
        type=click.Choice(["cpu", "cuda"]),
        default="cpu",
        help="Where networks are trained; cuda: untried so far.",
    ),
    resident_setting,
    renamed("--device", "--accelerator", type=click.Choice(["cpu", "cuda"])),
    run_setting("precision", default=None, show_default="fp32, bf16 with --accelerator cuda"),
    setting(
        "--workers",
        type=whole(1),
        metavar="COUNT",
        help="Number of runs at once, with one thread each.",
        show_default="all cores, 1 with --accelerator cuda",
    ),
    setting(
        "--out",
        type=click.Path(path_type=Path),
        required=True,
        metavar="DIR",
        help="Folder for results.json, report.html and each run's result; runs that have one are skipped.",
    ),
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
    accelerator: str,
    resident: int,
    workers: int | None,
    precision: Precision | None,
    weights: str | None,
    out: Path,
    **run: Any,
) -> None:
    """Train fleets in child processes, without a broker, with the fleet's own trainer and strategies.

    Each strategy and each baseline is run with every seed, on the same images. The command ends with a table
    of means over the seeds. Started again with the same --out, it runs only what is missing.
    """
    check_strategy_settings(strategy, run)
    require("--sample", run["sample"] != "all", "--sample-by")
    check_resident(resident, strategy, run)
    methods = (*strategy, *baselines)
    if not methods:
        raise ConfigError("nothing to run: give --strategy, --baselines, or both")
    if hostile and baselines:
        raise ConfigError('--hostile is for strategies, not for baselines: give --baselines ""')
    if isinstance(run["steps"], str):
        raise ConfigError(f"--steps {run['steps']}: simulated devices have no speed: give a number")
    if run["sample"] != "all" and baselines:
        raise ConfigError('--sample is for strategies, in baselines all train: give --baselines ""')
    if parse_hostile(hostile)[0] >= clients:
        raise ConfigError(f"--hostile {hostile}: expected an honest client, of {clients}")
    if cuts is not None and len(cuts) > clients:
        raise ConfigError(f"--cuts {','.join(map(str, cuts))} --clients {clients}: more cuts than clients")

    # This loads torch, which takes seconds: wrong flags are reported before.
    from splitee_lab.simulate.comparison import Comparison, compare
    from splitee_lab.simulate.jobs import ImageChoice

    wanted = Comparison(
        choice=ImageChoice(data, test, samples, test_samples),
        methods=methods,
        seeds=tuple(dict.fromkeys(seeds)),
        partitions=partitions,
        clients=clients,
        cuts=cuts,
        hostile=hostile,
        evaluate_every=evaluate_every,
        device=accelerator,
        resident=resident,
        workers=workers or (1 if accelerator == "cuda" else len(os.sched_getaffinity(0))),
        weights=weights,
        out=out,
    )
    run["precision"] = precision or ("bf16" if accelerator == "cuda" else "fp32")
    compare(wanted, run, quiet=is_quiet())
