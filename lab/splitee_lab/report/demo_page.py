"""A demo's report: the server's figures with the baselines, as report.json and as a page, report.html."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import msgspec
from markupsafe import Markup
from rich.table import Table
from rich.text import Text

from splitee.cli.words import megabytes, percent, size
from splitee.errors import StateError
from splitee.protocol.fleet import DeviceMetrics, Metrics
from splitee_lab.report.class_figures import class_rows, confusion_plot
from splitee_lab.report.demo_report import DeviceChoice, DeviceResult, Report, fleet_in_words
from splitee_lab.report.html_page import render
from splitee_lab.report.inference_table import DeviceInference, rows
from splitee_lab.report.plots import Bar, Colours, Group, Line, bars, over_rounds
from splitee_server.rounds.class_report import ClassReport


def complete(
    server_report: Path,
    *,
    network: str,
    data: str,
    broker: str,
    baselines: Mapping[str, float] | None,
    inference: Sequence[DeviceInference] = (),
    choices: Sequence[DeviceChoice] = (),
) -> dict[str, Any]:
    """The server's report with what only the demo knows. `baselines`: "centralized" and by device id.

    Raises:
        StateError: the server has left no report, or one that lacks a field.
    """
    try:
        report = msgspec.json.decode(server_report.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError) as error:
        raise StateError(f"expected the server's report at {server_report}: {error}") from None
    report |= {"network": network, "data": data, "broker": broker}
    report["inference"] = msgspec.to_builtins(list(inference))
    if choices:
        report["choices"] = msgspec.to_builtins(list(choices))
    if baselines is not None:
        alone = {name: value for name, value in baselines.items() if name != "centralized"}
        report["baselines"] = {"centralized_accuracy": baselines["centralized"], "alone_accuracy": alone}
    _typed(report, server_report)
    return report


def read_history(path: Path) -> list[Metrics]:
    """The evaluated rounds in order; a round that was evaluated again counts with its last line."""
    rounds = {}
    for line in path.read_bytes().splitlines():
        metrics = Metrics.decode(line)
        rounds[metrics.round] = metrics
    return [rounds[number] for number in sorted(rounds)]


def write(
    directory: Path, report: dict[str, Any], history: Sequence[Metrics], classes: ClassReport | None = None
) -> Report:
    """Writes report.json and report.html to `directory`."""
    typed = _typed(report, directory / "report.json")
    (directory / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    (directory / "report.html").write_text(page(typed, history, classes))
    return typed


def page(report: Report, history: Sequence[Metrics], classes: ClassReport | None = None) -> str:
    """The report as one HTML page. `classes`: the last round, class by class."""
    plots = _plots(report, history)
    if classes is not None and (confusion := confusion_plot(classes)) is not None:
        plots["confusion"] = confusion
    return render(
        "report.html.j2",
        report=report,
        trunk=_range(device.trunk_accuracy for device in report.devices),
        exits=_range(device.exit_accuracy for device in report.devices),
        adaptive=_range(device.adaptive_accuracy for device in report.devices),
        offload=_range(device.offload_share for device in report.devices),
        alone=_range(report.baselines.alone_accuracy.values() if report.baselines else ()),
        plots={name: Markup(svg) for name, svg in plots.items()},  # noqa: S704
        gains={device.id: _gain(device, report) for device in report.devices},
        answers=list(rows(report.inference)),
        facts=fleet_in_words(report),
        classes=list(class_rows(classes)) if classes is not None else [],
    )


def table(report: Report) -> Table:
    """The devices at the end, for a terminal."""
    shown = Table(box=None, header_style="bold", pad_edge=False)
    alone = report.baselines.alone_accuracy if report.baselines else {}
    shown.add_column("device", overflow="fold")
    shown.add_column("cut", overflow="fold")
    figures = ("exit", "trunk", "adaptive", "offload", *(("alone", "gain") if alone else ()))
    for name in ("images", *figures, "MB"):
        shown.add_column(name, justify="right")
    for device in report.devices:
        cells = (
            device.id,
            f"{device.cut} {device.stage}",
            f"{device.train_samples:,}",
            percent(device.exit_accuracy),
            percent(device.trunk_accuracy),
            percent(device.adaptive_accuracy),
            percent(device.offload_share),
            *((percent(alone.get(device.id)), _gain(device, report)) if alone else ()),
            megabytes(device.bytes),
        )
        shown.add_row(*map(Text, cells))
    return shown


def _gain(device: DeviceResult, report: Report) -> str:
    """Points by which adaptive inference is more accurate than the whole network, trained alone."""
    alone = report.baselines.alone_accuracy.get(device.id) if report.baselines else None
    if device.adaptive_accuracy is None or alone is None:
        return "-"
    return f"{100 * (device.adaptive_accuracy - alone):+.1f}"


def choices_table(choices: Sequence[DeviceChoice]) -> Table:
    """Limits and the cuts that the profiler chose, with its reasons."""
    shown = Table(box=None, header_style="bold", pad_edge=False)
    shown.add_column("device", overflow="fold")
    for name in ("core", "MiB", "cut"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("why", overflow="fold")
    for choice in choices:
        cells = (choice.id, f"{choice.cpu:.0%}", f"{choice.memory}", f"{choice.cut}", choice.reason)
        shown.add_row(*map(Text, cells))
    return shown


class Range(msgspec.Struct, frozen=True):
    """A figure over the devices."""

    mean: float
    low: float
    high: float


def _range(values: Any) -> Range | None:
    known = [value for value in values if value is not None]
    return Range(mean(known), min(known), max(known)) if known else None


def _typed(report: dict[str, Any], path: Path) -> Report:
    try:
        return msgspec.convert(report, Report)
    except msgspec.ValidationError as error:
        raise StateError(f"{path} is no report of a run: {error}") from None


def _plots(report: Report, history: Sequence[Metrics]) -> dict[str, str]:
    colours = Colours([device.cut for device in report.devices])
    references = {}
    if report.baselines:
        references["centralized"] = report.baselines.centralized_accuracy
        references["alone (mean)"] = mean(report.baselines.alone_accuracy.values())
    plots = {}
    for name, share in (
        ("exit_loss", False),
        ("trunk_loss", False),
        ("exit_accuracy", True),
        ("trunk_accuracy", True),
    ):
        lines = _lines(report, history, name)
        if lines:
            plots[name] = over_rounds(name, lines, references if share else {}, colours, share=share)
    plots["by_cut"] = bars("by_cut", _accuracy_groups(report), colours, percent, top=1.0)
    sent = [Group("", device.cut, [Bar(device.id, device.bytes)]) for device in report.devices]
    most = max(device.bytes for device in report.devices)
    plots["sent"] = bars("sent", sent, colours, size, top=max(most, 1))
    return plots


def _lines(report: Report, history: Sequence[Metrics], figure: str) -> list[Line]:
    lines = []
    for device in report.devices:
        values = {}
        for metrics in history:
            measured: DeviceMetrics | None = metrics.devices.get(device.id)
            value = getattr(measured, figure, None)
            if value is not None:
                values[metrics.round] = value
        if values:
            lines.append(Line(device.id, device.cut, values))
    return lines


def _accuracy_groups(report: Report) -> list[Group]:
    alone = report.baselines.alone_accuracy if report.baselines else {}
    groups = []
    for cut in sorted({device.cut for device in report.devices}):
        devices = [device for device in report.devices if device.cut == cut]
        figures = (
            ("trunk", _range(device.trunk_accuracy for device in devices), 1.0),
            ("adaptive", _range(device.adaptive_accuracy for device in devices), 0.75),
            ("exit", _range(device.exit_accuracy for device in devices), 0.5),
            ("alone", _range(alone.get(device.id) for device in devices), None),
        )
        who = devices[0].id if len(devices) == 1 else f"mean of {len(devices)} devices"
        groups.append(
            Group(
                f"Cut {cut}, after {devices[0].stage}: {who}",
                cut,
                [Bar(name, found.mean, strength) for name, found, strength in figures if found],
            )
        )
    return groups
