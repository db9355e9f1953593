# SPDX-License-Identifier: Apache-2.0
"""`splitee label`: a page on which a person labels this device's own images, which never leave it."""

from __future__ import annotations

import logging
from contextlib import closing
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table

from splitee.cli.bounds import MOST_THREADS, whole
from splitee.cli.command import Command, section
from splitee.cli.input_options import region_setting
from splitee.cli.plain_text import echo, echo_json, plain_cell
from splitee.cli.settings import setting, settings_file, switch
from splitee.cli.signals import stop_on_signals
from splitee.cli.verbosity import log_options
from splitee.errors import ConfigError, DataError
from splitee.samples.fitting import Region
from splitee_device.labelling.class_names import WORKSPACE
from splitee_device.labelling.extractor import open_extractor
from splitee_device.labelling.kept_features import KeptFeatures
from splitee_device.labelling.labelled import is_it_enough
from splitee_device.labelling.labeller import Labeller
from splitee_device.labelling.learning_curve import Enough, Spread
from splitee_device.labelling.scores import Scores
from splitee_web.listening import ListenOptions, listening_options

PORT = 8081
DIRECTORY = click.Path(path_type=Path)

log = logging.getLogger(__name__)


@click.command(cls=Command)
@settings_file
@log_options()
@section(
    "Images and model",
    setting(
        "--data",
        type=DIRECTORY,
        required=True,
        metavar="DIR",
        help="Folder of the labelled images, DIR/CLASS/*.jpg, into which images are moved: the --data of "
        "`splitee device`.",
    ),
    setting(
        "--unlabelled",
        type=DIRECTORY,
        metavar="DIR",
        help="Folder of images that nobody has labelled.",
        show_default="none",
    ),
    setting(
        "--unsure",
        type=DIRECTORY,
        metavar="DIR",
        help="The --keep-unsure of `splitee device` or `infer`: images that its model was uncertain of.",
        show_default="none",
    ),
    setting(
        "--model",
        type=DIRECTORY,
        metavar="DIR",
        help="Exported model, or the state or models of a device: its model in service predicts.",
        show_default="none: images without predictions",
    ),
    region_setting(
        help="Part of each image that the network sees, in its pixels: left, top, width, height.",
        show_default="as it was trained",
    ),
    setting(
        "--threads",
        type=whole(1, MOST_THREADS),
        metavar="COUNT",
        help="Number of CPU threads.",
        show_default="all cores but one",
    ),
)
@section(
    "Without the page",
    switch("--enough", is_flag=True, help="Print whether the labelled images are enough, and end."),
    switch("--json", "as_json", is_flag=True, help="With --enough: print JSON."),
)
@listening_options(PORT)
def label(
    data: Path,
    unlabelled: Path | None,
    unsure: Path | None,
    model: Path | None,
    region: Region | None,
    threads: int | None,
    enough: bool,
    as_json: bool,
    where: ListenOptions,
) -> None:
    """Label this device's own images in a browser: those that the model is uncertain of first.

    A label moves an image into DIR/CLASS, where training finds it. Nothing of the images goes to the broker.
    """
    if as_json and not enough:
        raise ConfigError("--json does nothing without --enough: give both, or neither")
    if enough:
        _print_enough(data, model, region, threads, as_json)
        return
    folders = [folder for folder in (unsure, unlabelled) if folder is not None]
    if not folders:
        raise ConfigError("nothing to label: give --unlabelled DIR, --unsure DIR, or both")
    _serve(data, folders, Scores(model, region, threads), where)


def _serve(data: Path, folders: list[Path], scores: Scores, where: ListenOptions) -> None:
    from splitee_device.labelling.page import LabelPage
    from splitee_web.site import serve

    if not data.exists() and data.parent.is_dir():
        raise DataError(f"{data}: there is no such folder; make it first: mkdir {data}")
    with closing(Labeller(data, folders, scores.guess)) as labeller:
        scores.open(labeller)
        app = LabelPage(labeller, scores).make_app(where)
        log.info("%d images to label, %d classes", len(labeller.unlabelled), len(labeller.classes))
        serve(app, where, stop_on_signals(), lambda url: log.info("the page is at %s", url))


def _print_enough(
    data: Path, model: Path | None, region: Region | None, threads: int | None, as_json: bool
) -> None:
    extractor = open_extractor(model, region, threads)
    kept = KeptFeatures(data / WORKSPACE, extractor)
    found = is_it_enough(data, kept)
    if (data / WORKSPACE).is_dir():
        kept.save()
    if as_json:
        echo_json({**msgspec.to_builtins(found), "features": extractor.model_description})
        return
    Console().print(_table(found))
    for point in found.curve:
        echo(f"{point.images:6} labels: accuracy {_format_spread(point.accuracy)}")
    echo(found.verdict)
    echo(found.advice)
    if model is None:
        echo("Without --model this is from pixels alone, the least that a network makes of them.")


def _table(found: Enough) -> Table:
    table = Table(title=f"{found.images} labelled images")
    for heading in ("class", "images", "recall", f"{found.next} more would add"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for one in found.classes:
        recall = "too few to tell" if one.recall is None else _format_spread(one.recall)
        gain = "" if one.gain is None else _format_spread(one.gain, " points")
        table.add_row(plain_cell(one.name), str(one.images), recall, gain)
    return table


def _format_spread(spread: Spread, unit: str = " %") -> str:
    return f"{100 * spread.mean:.1f}{unit} ({100 * spread.low:.1f} to {100 * spread.high:.1f})"
