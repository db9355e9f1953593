"""`splitee demo`: the main job on one machine, in one command."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import click
from rich.console import Console

from splitee.cli.bounds import whole
from splitee.cli.run_flags import run_setting
from splitee.cli.settings import setting, settings_file
from splitee.cli.words import percent, size, span
from splitee.protocol.codecs import CODECS
from splitee.samples.fitting import Shape
from splitee_lab.demo.fleet import Demo, run
from splitee_lab.demo.progress import open_display
from splitee_lab.local.processes import signals_unwind
from splitee_lab.report.conclusion import conclusion
from splitee_lab.report.demo_page import choices_table, table
from splitee_lab.report.demo_report import Report
from splitee_lab.report.inference_table import inference_table
from splitee_lab.report.notes import notes
from splitee_lab.report.traffic import total
from splitee_lab.report.wrapping import wrapped
from splitee_server.learning.strategies.registry import STRATEGIES

ROUNDS, QUICK_ROUNDS, QUICK_SAMPLES = 5, 3, 400


@click.command()
@settings_file
@run_setting("strategy", type=click.Choice(list(STRATEGIES)))
@setting(
    "--rounds",
    type=whole(1),
    help=f"Passes over the images.  [default: {ROUNDS}; with --quick {QUICK_ROUNDS}]",
)
@setting("--devices", type=whole(1, 100), default=3, help="Device processes.")
@run_setting("network", default="resnet18")
@run_setting("input_shape")
@run_setting("seed", default=1)
@setting(
    "--broker",
    default="auto",
    metavar="auto|mosquitto|embedded|URL",
    help="auto: mosquitto if installed, else embedded; or the address of one that runs, such as mqtt://HOST:PORT.",
)
@run_setting("codec", type=click.Choice(CODECS), help="Of the features on the wire.")
@run_setting("client_averaging")
@setting(
    "--samples",
    type=whole(10),
    help=f"Training images a device, at most.  [default: all; with --quick {QUICK_SAMPLES}]",
)
@setting(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="For the report, states and logs.  [default: runs/demo-DATE-TIME]",
)
@click.option("--quick", is_flag=True, help="Fewer images and rounds: under 90 s on two cores.")
@click.option(
    "--no-baselines",
    is_flag=True,
    help="Train nothing for comparison: neither all in one place, nor each device alone.",
)
@click.option(
    "--profile", is_flag=True, help="Devices with limits (CPU, memory), whose cuts the profiler chooses."
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
) -> None:
    """Train a fleet on this machine: broker, server and devices as processes, on real images.

    Ends with a table, report.json, report.html, and what joining was worth.
    """
    logging.getLogger("splitee").setLevel(logging.WARNING)
    logging.getLogger("splitee_device").setLevel(logging.WARNING)
    started = time.monotonic()
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
    )
    console = Console()
    with signals_unwind(), open_display(console) as display:
        report = run(wanted, display, lambda line: console.print(line, markup=False, soft_wrap=True))
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
    console.print(wrapped(_in_all(report, time.monotonic() - started), console.width), highlight=False)
    console.print(f"report: {wanted.out / 'report.html'}", soft_wrap=True, highlight=False)
    console.print()
    console.print(wrapped(conclusion(report), console.width), markup=False, highlight=False)


def _in_all(report: Report, seconds: float) -> str:
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
