# SPDX-License-Identifier: Apache-2.0
"""`splitee profile`: measures which cut suits this device, and gives the reasons. It needs no root."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from splitee.cli.bounds import MOST_THREADS, number, whole
from splitee.cli.command import Command, section
from splitee.cli.link_options import optional_link_options
from splitee.cli.plain_text import echo_json
from splitee.cli.precision import check_precision
from splitee.cli.run_flags import build_run_spec, run_setting
from splitee.cli.settings import setting, settings_file, switch
from splitee.cli.verbosity import is_quiet, log_options
from splitee.cli.words import MIB
from splitee.errors import ExtraMissing, NoCutFits
from splitee.mqtt.options import LinkOptions
from splitee.protocol.codecs import CODECS
from splitee.protocol.topics import check_name
from splitee.samples.fitting import PHOTO_SHAPE
from splitee_device.machine import hardware
from splitee_device.profiler.choice import PREFERENCES, Preference, choose
from splitee_device.profiler.cost_model import Work, payload_bytes, predict
from splitee_device.profiler.link_speed import Echo, open_echo
from splitee_device.profiler.probe import measure_cuts
from splitee_device.profiler.report import WIDTH, as_json, check_chart, cuts_table, facts_table, plot
from splitee_device.profiler.store import MeasuredStore

TYPICAL_PAYLOAD = 256 << 10  # bytes, if there is no torch to tell the size of a batch
FILE = click.Path(path_type=Path)

log = logging.getLogger(__name__)


@click.command(cls=Command)
@settings_file
@log_options()
@section(
    "Network",
    run_setting("network", default="resnet18", metavar="NAME"),
    run_setting("stem"),
    run_setting("num_classes", default=10),
    run_setting("input_shape", default=PHOTO_SHAPE),
    run_setting("freeze", "--freeze", "frozen", type=whole(0, 10_000), help="Number of frozen stages."),
)
@section(
    "Training",
    run_setting("batch_size", "--batch-size", "--batch", "batch_size"),
    run_setting("codec", type=click.Choice(CODECS), help="Codec of the features on the wire."),
    setting(
        "--samples", type=whole(1), default=2000, metavar="COUNT", help="Training images of this device."
    ),
    run_setting(
        "steps", type=whole(0), help="Batches that a device trains in a round; 0: one pass over its data."
    ),
    run_setting("precision"),
    setting(
        "--threads",
        type=whole(1, MOST_THREADS),
        metavar="COUNT",
        help="Number of CPU threads.",
        show_default="the cores it may use",
    ),
)
@section(
    "Measurement and choice",
    setting(
        "--prefer", type=click.Choice(PREFERENCES), default="fastest", help="Which of the cuts that fit."
    ),
    setting(
        "--reserve", type=whole(0), default=64, metavar="MIB", help="Memory that must stay free, in MiB."
    ),
    setting(
        "--cpu-share",
        type=number(0, 1, above=True),
        default=1.0,
        metavar="SHARE",
        help="Largest share of the usable cores that training may keep busy.",
    ),
    setting(
        "--budget",
        type=number(1),
        default=120.0,
        metavar="SECONDS",
        help="Time to measure for, in seconds.",
    ),
    setting(
        "--id",
        "device",
        default="profile",
        metavar="ID",
        help="Name of this device in the fleet, for the echo that measures its link.",
    ),
)
@section(
    "Results",
    setting(
        "--state",
        type=FILE,
        metavar="DIR",
        help="State of `splitee device`, which keeps the measurements for it.",
        show_default="none",
    ),
    switch("--json", "as_json_", is_flag=True, help="Print JSON."),
    switch(
        "--plot",
        "chart",
        type=FILE,
        metavar="FILE.png",
        help="Image file to draw the costs into.",
        show_default="none",
    ),
)
@optional_link_options
def profile(
    link: LinkOptions | None,
    samples: int,
    steps: int,
    threads: int | None,
    prefer: Preference,
    reserve: int,
    cpu_share: float,
    budget: float,
    device: str,
    state: Path | None,
    as_json_: bool,
    chart: Path | None,
    **run: Any,
) -> None:
    """Measure which cut suits this device.

    Trains at as many cuts as the budget allows, each in a process of its own, and interpolates the others. A
    round's time is that of training and upload, which overlap. With --broker the link is measured by an echo.
    """
    if chart is not None:
        check_chart(chart)  # before the measurement, so that it is not in vain
    spec = build_run_spec(run="profile", rounds=1, **run)
    check_precision(spec.precision)
    work = Work(samples, steps or max(1, samples // spec.batch_size), reserve * MIB, cpu_share)
    console = Console()
    console.width = max(console.width, WIDTH)  # a narrow terminal wraps the table rather than hides columns
    with ExitStack() as stack:
        echo = stack.enter_context(open_echo(link, check_name(device, "--id"))) if link else None
        facts = hardware.facts()
        if find_spec("torch") is None:
            work = _with_link(work, echo, TYPICAL_PAYLOAD)
            if as_json_:
                echo_json(as_json(facts, None, work, (), None))
            else:
                console.print(facts_table(facts))
            raise ExtraMissing(
                "training is not measured, it needs torch: pip install 'hetero-splitee[train]'"
            )
        with _progress() as show:
            measured = measure_cuts(
                spec, threads=threads or hardware.usable_threads(), budget=budget, progress=show
            )
            show("link to the broker" if echo else "choosing")
            work = _with_link(work, echo, payload_bytes(measured))
    if state is not None:
        MeasuredStore(state).save(measured)
    rows = predict(measured, work)
    choice = choose(rows, prefer, measured, work)
    if as_json_:
        echo_json(as_json(facts, measured, work, rows, choice))
    else:
        console.print(facts_table(facts), "", cuts_table(measured, work, rows, choice), "")
    if chart is not None and rows:
        plot(chart, measured, rows, choice)
    if choice.cut is None:
        raise NoCutFits(choice.reason)
    if not as_json_:
        console.print(f"recommended: {choice.reason}", markup=False, highlight=False)


def _with_link(work: Work, echo: Echo | None, payload: int) -> Work:
    speed = echo.speed(payload) if echo else None
    return Work(work.samples, work.steps, work.reserve, work.cpu_share, speed)


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Shows what is being measured: in one line on a terminal, otherwise in the log."""
    console = Console(stderr=True)
    if is_quiet() or not console.is_terminal:
        yield lambda text: log.info("profile: %s", text)
        return
    with console.status("profile") as status:
        yield lambda text: status.update(f"measuring: {text}")
