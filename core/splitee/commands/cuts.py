# SPDX-License-Identifier: Apache-2.0
"""`splitee cuts`: lists the places where a network can be cut, and what each leaves on the device."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from splitee.cli.bounds import whole
from splitee.cli.command import Command, section
from splitee.cli.input_options import InputType
from splitee.cli.pairs import require
from splitee.cli.plain_text import echo, echo_json, plain_cell
from splitee.cli.run_flags import run_setting
from splitee.cli.settings import setting, settings_file, switch
from splitee.errors import NetworkError
from splitee.samples.fitting import PHOTO_SHAPE, Shape, format_shape

if TYPE_CHECKING:
    from splitee.networks.split import SplitNetwork

ALL_INPUT = (3, 224, 224)  # the smallest input that every classifier accepts


@click.command(cls=Command)
@settings_file
@click.argument("network", required=False)
@section(
    "Network",
    run_setting("stem"),
    run_setting("num_classes", default=10),
    setting(
        "--input",
        "input_shape",
        type=InputType(),
        metavar=InputType.name,
        show_default=f"{format_shape(PHOTO_SHAPE)}, with --all {format_shape(ALL_INPUT)}",
        help="Channels, height and width, in pixels, of the images that the network sees.",
    ),
    setting(
        "--freeze",
        type=whole(0),
        default=0,
        metavar="COUNT",
        help="Number of frozen stages, counted from the first.",
    ),
)
@section(
    "Results",
    switch("--all", "every", is_flag=True, help="Print one line for each of torchvision's classifiers."),
    switch("--json", "as_json", is_flag=True, help="Print JSON."),
)
def cuts(
    network: str | None,
    stem: str,
    num_classes: int,
    input_shape: Shape | None,
    freeze: int,
    every: bool,
    as_json: bool,
) -> None:
    """List the places where NETWORK can be cut.

    NETWORK is a torchvision classifier, such as resnet18, or module:factory. With a cut, the device holds all
    stages up to it. Parameters and MMACs (million multiply-accumulates per sample) are those of the device,
    without its exit. A training step computes three times as much, but frozen stages only once: they have no
    backward pass.
    """
    if every == (network is not None):
        raise click.UsageError("give the name of a NETWORK, or --all")
    require("NETWORK", network is not None, "--freeze")
    if network is None:
        _print_all(stem, num_classes, input_shape or ALL_INPUT, as_json)
        return
    from splitee.networks.split import build_network  # with torch

    # On the meta device a network has a description but no weights.
    shape = input_shape or PHOTO_SHAPE
    split = build_network(network, num_classes=num_classes, input_shape=shape, stem=stem, device="meta")
    split.freeze(freeze)
    if as_json:
        echo_json({**_summary(split), "stem": stem, "cuts": list(_rows(split))})
    else:
        Console().print(_table(split))


def _rows(split: SplitNetwork) -> Iterator[dict[str, Any]]:
    from splitee.training.compute import step_macs

    parameters = accumulate(stage.parameters for stage in split.stages)
    macs = accumulate(stage.macs for stage in split.stages)
    trained = accumulate(0 if stage.index <= split.frozen else stage.parameters for stage in split.stages)
    sums = zip(parameters, macs, trained, strict=True)
    for stage, (held, work, learnt) in zip(split.stages[:-1], sums, strict=False):
        yield {
            "cut": stage.index,
            "stage": stage.name,
            "feature_shape": list(stage.feature_shape),
            "kb_per_sample": prod(stage.feature_shape) * 4 / 1000,
            "device_parameters": held,
            "device_mmacs": work / 1e6,
            "trained_parameters": learnt,
            "training_mmacs": step_macs(split, stage.index) / 1e6,
        }


def _summary(split: SplitNetwork) -> dict[str, Any]:
    return {
        "network": split.name,
        "num_classes": split.num_classes,
        "input_shape": list(split.input_shape),
        "num_layers": split.num_layers,
        "parameters": sum(stage.parameters for stage in split.stages),
        "mmacs": sum(stage.macs for stage in split.stages) / 1e6,
    }


def _table(split: SplitNetwork) -> Table:
    whole = _summary(split)
    table = Table(
        title=f"{split.name}, {format_shape(split.input_shape)}, {split.num_classes} classes: "
        f"cuts 1..{split.num_layers - 1} of {split.num_layers} stages",
        caption=f"The whole network: {whole['parameters']:,} parameters, {whole['mmacs']:,.2f} MMACs",
    )
    table.add_column("cut", justify="right", no_wrap=True)
    table.add_column("stage", overflow="fold")
    headings = ["features", "KB a sample\n(fp32)", "parameters\non the device", "MMACs\non the device"]
    if split.frozen:
        headings[3:] = ["of these\ntrained", "MMACs\nto train"]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in _rows(split):
        table.add_row(
            str(row["cut"]),
            plain_cell(row["stage"]),
            format_shape(row["feature_shape"]),
            f"{row['kb_per_sample']:,.1f}",
            f"{row['device_parameters']:,}",
            *(
                (f"{row['trained_parameters']:,}", f"{row['training_mmacs']:,.2f}")
                if split.frozen
                else (f"{row['device_mmacs']:,.2f}",)
            ),
        )
    return table


def _print_all(stem: str, num_classes: int, input_shape: tuple[int, ...], as_json: bool) -> None:
    from splitee.networks.zoo import classifiers

    names = classifiers()
    cut = 0
    for name in names:
        found = _try(name, stem, num_classes, input_shape)
        cut += "reason" not in found
        if as_json:
            echo_json(found, indent=None)
        elif "reason" in found:
            echo(f"{name:20} cannot be cut: {found['reason']}")
        else:
            echo(
                f"{name:20} {found['num_layers'] - 1:4} cuts {found['parameters'] / 1e6:8.1f} M parameters "
                f"{found['mmacs']:11,.0f} MMACs"
            )
    if not as_json:
        echo(f"{cut} of {len(names)} networks can be cut, at {format_shape(input_shape)}")


def _try(name: str, stem: str, num_classes: int, input_shape: tuple[int, ...]) -> dict[str, Any]:
    from splitee.networks.split import build_network

    try:
        return _summary(
            build_network(name, num_classes=num_classes, input_shape=input_shape, stem=stem, device="meta")
        )
    except NetworkError as error:
        return {"network": name, "reason": str(error)}
