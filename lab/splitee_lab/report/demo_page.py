"""A demo's report: the server's figures with the baselines, as report.json and as a page, report.html."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from types import MappingProxyType
from typing import Any

import msgspec
from markupsafe import Markup
from rich.table import Table
from rich.text import Text

from splitee.cli.words import percent, size
from splitee.errors import StateError
from splitee.protocol.fleet import DeviceMetrics, Metrics
from splitee_lab.report.cards import cards
from splitee_lab.report.class_figures import class_rows, confusion_plot
from splitee_lab.report.conclusion import conclusion
from splitee_lab.report.demo_report import BaselineResult, DeviceChoice, Report, fleet_in_words
from splitee_lab.report.gains import adaptive_over_alone, signed
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
    baselines: BaselineResult | None,
    inference: Sequence[DeviceInference] = (),
    choices: Sequence[DeviceChoice] = (),
    compute_share: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, Any]:
    """The server's report with what only the demo knows, as `Report` describes it.

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
    if compute_share:
        report["compute_share"] = dict(compute_share)
    if baselines is not None:
        report["baselines"] = msgspec.to_builtins(baselines)
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
        conclusion=conclusion(report),
        cards=list(cards(report)),
        plots={name: Markup(svg) for name, svg in plots.items()},  # noqa: S704
        gains=_gains(report),
        answers=list(rows(report.inference)),
        facts=fleet_in_words(report),
        classes=list(class_rows(classes)) if classes is not None else [],
    )


def table(report: Report) -> Table:
    """The devices at the end, for a terminal."""
    note = "In %, on held-out images"
    if report.baselines:
        note += "; gain: adaptive over alone, in points"
    shown = Table(box=None, header_style="bold", pad_edge=False, caption=note, caption_justify="left")
    shown.add_column("device", overflow="fold")
    shown.add_column("cut", overflow="fold")
    compared = ("alone", "alone-exit", "gain") if report.baselines else ()
    for name in ("exit", "trunk", "adaptive", "offload", *compared):
        shown.add_column(name, justify="right", no_wrap=True)
    gains = _gains(report)
    for device in report.devices:
        found = [device.exit_accuracy, device.trunk_accuracy, device.adaptive_accuracy, device.offload_share]
        cells = [device.id, f"{device.cut} {device.stage}", *map(_per_cent, found)]
        if report.baselines:
            alone = report.baselines.alone_accuracy, report.baselines.alone_exit_accuracy
            cells += [*(_per_cent(by_device.get(device.id)) for by_device in alone), gains[device.id]]
        shown.add_row(*map(Text, cells))
    return shown


def _per_cent(share: float | None) -> str:
    """Without its sign, for columns of them."""
    return "-" if share is None else f"{100 * share:.1f}"


def _gains(report: Report) -> dict[str, str]:
    """By device, the points by which adaptive inference is more accurate than the whole network, alone."""
    found = adaptive_over_alone(report)
    points = found.points if found is not None else {}
    return {one.id: signed(points[one.id]) if one.id in points else "-" for one in report.devices}


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


def _typed(report: dict[str, Any], path: Path) -> Report:
    try:
        return msgspec.convert(report, Report)
    except msgspec.ValidationError as error:
        raise StateError(f"{path} is no report of a run: {error}") from None


def _plots(report: Report, history: Sequence[Metrics]) -> dict[str, str]:
    colours = Colours([device.cut for device in report.devices])
    references: dict[str, float] = {}
    alone_exit: dict[str, float] = {}
    if report.baselines:
        references["centralized"] = report.baselines.centralized_accuracy
        references["alone"] = mean(report.baselines.alone_accuracy.values())
        if by_device := report.baselines.alone_exit_accuracy:
            alone_exit["alone-exit"] = mean(by_device.values())
    plots = {}
    for name, compared in (
        ("exit_loss", None),
        ("trunk_loss", None),
        ("exit_accuracy", references | alone_exit),
        ("trunk_accuracy", references),
    ):
        lines = _lines(report, history, name)
        if lines:
            share = compared is not None
            plots[name] = over_rounds(name, lines, compared or {}, colours, share=share)
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
    baselines = report.baselines
    alone = baselines.alone_accuracy if baselines else {}
    alone_exit = baselines.alone_exit_accuracy if baselines else {}
    groups = []
    for cut in sorted({device.cut for device in report.devices}):
        devices = [device for device in report.devices if device.cut == cut]
        figures: tuple[tuple[str, list[float | None], float | None], ...] = (
            ("trunk", [device.trunk_accuracy for device in devices], 1.0),
            ("adaptive", [device.adaptive_accuracy for device in devices], 0.75),
            ("alone", [alone.get(device.id) for device in devices], None),
            ("exit", [device.exit_accuracy for device in devices], 0.5),
            ("alone-exit", [alone_exit.get(device.id) for device in devices], None),
        )
        shown = [
            Bar(name, mean(known), strength)
            for name, values, strength in figures
            if (known := [value for value in values if value is not None])
        ]
        who = devices[0].id if len(devices) == 1 else f"mean of {len(devices)} devices"
        groups.append(Group(f"Cut {cut}, after {devices[0].stage}: {who}", cut, shown))
    if baselines:
        bar = Bar("centralized", baselines.centralized_accuracy, None)
        groups.append(Group("All images in one place", 0, [bar]))
    return groups
