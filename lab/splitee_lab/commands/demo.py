# SPDX-License-Identifier: Apache-2.0
"""`splitee demo`: the main job on one machine, in one command."""

from __future__ import annotations

import logging
import signal
import time
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from splitee.cli.bounds import whole
from splitee.cli.command import Command, section
from splitee.cli.plain_text import echo, plain
from splitee.cli.run_flags import run_setting
from splitee.cli.settings import setting, settings_file, switch
from splitee.cli.verbosity import is_quiet, log_options
from splitee.cli.words import percent, size, span
from splitee.protocol.codecs import CODECS
from splitee.samples.fitting import Shape
from splitee_lab.local.processes import signals_unwind
from splitee_server.learning.strategies.registry import STRATEGIES

if TYPE_CHECKING:
    from splitee_lab.report.demo_report import Report

ROUNDS, QUICK_ROUNDS, QUICK_SAMPLES = 5, 3, 400


@click.command(cls=Command)
@settings_file
@log_options(logging.WARNING, splitee_server=logging.INFO, splitee_lab=logging.INFO)
@section(
    "Fleet",
    setting("--devices", type=whole(1, 100), default=3, metavar="COUNT", help="Number of device processes."),
    setting(
        "--broker",
        default="auto",
        metavar="auto|mosquitto|embedded|URL",
        help="Broker of the fleet; auto: mosquitto if installed, else embedded; or the address of one that "
        "runs, such as mqtt://HOST:PORT.",
    ),
    switch(
        "--profile", is_flag=True, help="Give devices limits (CPU, memory), and let the profiler choose cuts."
    ),
)
@section(
    "Training",
    run_setting("strategy", type=click.Choice(list(STRATEGIES))),
    setting(
        "--rounds",
        type=whole(1),
        metavar="COUNT",
        help="Number of rounds, each one pass over the images.",
        show_default=f"{ROUNDS}, with --quick {QUICK_ROUNDS}",
    ),
    setting(
        "--samples",
        type=whole(10),
        metavar="COUNT",
        help="Largest number of training images per device.",
        show_default=f"all, with --quick {QUICK_SAMPLES}",
    ),
    run_setting("network", default="resnet18", metavar="NAME"),
    run_setting("input_shape"),
    run_setting("seed", default=1),
    run_setting("codec", type=click.Choice(CODECS), help="Codec of the features on the wire."),
    run_setting("client_averaging"),
)
@section(
    "Course and results",
    switch(
        "--page",
        is_flag=True,
        help="Serve the fleet's page while the demo runs; its address is printed first.",
    ),
    switch(
        "--keep-page",
        is_flag=True,
        help="As --page, and go on serving it after the demo, until Ctrl-C.",
    ),
    switch("--quick", is_flag=True, help="Take fewer images and rounds: under 90 s on two cores."),
    switch(
        "--no-baselines",
        is_flag=True,
        help="Skip the baselines: neither centralized training, nor each device alone.",
    ),
    setting(
        "--out",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Folder for the report, states and logs.",
        show_default="runs/demo-DATE-TIME",
    ),
)
def demo(
    strategy: str,
    rounds: int | None,
    devices: int,
    network: str,
    input_shape: Shape,
    seed: int,
    broker: str,
    codec: str,
    client_averaging: str,
    samples: int | None,
    out: Path | None,
    quick: bool,
    no_baselines: bool,
    profile: bool,
    page: bool,
    keep_page: bool,
) -> None:
    """Train a fleet on this machine: broker, server and devices as processes, on real images.

    It ends with a table, report.json, report.html, and what each device gains by joining.
    """
    started = time.monotonic()

    # These load torch and matplotlib, which takes seconds: wrong flags are reported before.
    from splitee_lab.demo.fleet import Demo, run
    from splitee_lab.demo.progress import open_display

    wanted = Demo(
        network=network,
        strategy=strategy,
        rounds=rounds or (QUICK_ROUNDS if quick else ROUNDS),
        devices=devices,
        seed=seed,
        broker=broker,
        codec=codec,
        averaging=client_averaging,
        samples=samples or (QUICK_SAMPLES if quick else None),
        baselines=not no_baselines,
        profile=profile,
        out=out or Path("runs") / time.strftime("demo-%Y%m%d-%H%M%S"),
        input_shape=input_shape,
        page=page or keep_page,
    )
    console, progress_console = Console(), Console(quiet=is_quiet())
    with signals_unwind(), ExitStack() as stack:
        with open_display(progress_console) as display:
            print_line = partial(progress_console.print, markup=False, soft_wrap=True)
            report = run(wanted, display, lambda line: print_line(plain(line)), stack)
        _show(report, wanted.out / "report.html", console, time.monotonic() - started)
        if keep_page:
            echo("the page is still served: Ctrl-C ends it")
            with suppress(KeyboardInterrupt):
                signal.pause()


def _show(report: Report, page: Path, console: Console, seconds: float) -> None:
    """Print the results. `page`: the report for a browser."""
    from splitee_lab.report.conclusion import conclusion
    from splitee_lab.report.demo_page import choices_table, table
    from splitee_lab.report.inference_table import inference_table
    from splitee_lab.report.notes import notes
    from splitee_lab.report.wrapping import wrapped

    console.print()
    console.print(table(report))
    for line in notes(report):
        console.print(wrapped(line, console.width), markup=False, highlight=False)
    console.print()
    if report.choices:
        console.print(choices_table(report.choices))
        console.print()
    console.print(inference_table(report.inference))
    console.print()
    console.print(wrapped(_in_all(report, seconds), console.width), highlight=False)
    echo(f"report: {page}")
    console.print()
    console.print(wrapped(conclusion(report), console.width), markup=False, highlight=False)


def _in_all(report: Report, seconds: float) -> str:
    from splitee_lab.report.traffic import total

    sent = sum(total(device) for device in report.devices)
    facts = [
        f"{report.batches_trained} of {report.batches_published} batches trained",
        f"{size(sent)} sent",
        f"fleet {span(report.seconds)}",
        f"all {span(seconds)}",
    ]
    if report.baselines is not None:
        facts.insert(0, f"centralized {percent(report.baselines.centralized_accuracy)}")
    return ", ".join(facts)
