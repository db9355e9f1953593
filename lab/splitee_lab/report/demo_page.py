# SPDX-License-Identifier: Apache-2.0
"""A demo's report: the server's figures with the baselines, as report.json and as a page, report.html."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from markupsafe import Markup
from rich.table import Table
from rich.text import Text

from splitee import __version__
from splitee.cli.words import percent, size
from splitee.durable import write_atomically
from splitee.errors import StateError
from splitee.protocol.fleet import DeviceMetrics, Metrics
from splitee_lab.report.cards import cards, levels
from splitee_lab.report.class_figures import class_rows, confusion_plot, confusions
from splitee_lab.report.conclusion import conclusion
from splitee_lab.report.demo_report import DeviceChoice, Report
from splitee_lab.report.figures import average, figures
from splitee_lab.report.gains import Comparison, adaptive_over_alone, adaptive_over_alone_exit, signed
from splitee_lab.report.html_page import render
from splitee_lab.report.inference_table import rows
from splitee_lab.report.notes import weakest_classes
from splitee_lab.report.plots import Bar, Colours, Group, Line, bars, dots, over_rounds
from splitee_lab.report.traffic import COUNTED, bars_of, total


def complete(server_report: Path, **found: Any) -> dict[str, Any]:
    """The server's report with the fields of `Report` that only the demo has `found`, except those of None.

    Raises:
        StateError: the server has written no report, or one that lacks a field.
    """
    try:
        report = msgspec.json.decode(server_report.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError) as error:
        raise StateError(f"expected the server's report at {server_report}: {error}") from None
    known = {name: value for name, value in found.items() if value is not None}
    report |= msgspec.to_builtins(known)
    report |= {"version": __version__, "ended": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    _typed(report, server_report)
    return report


def read_history(path: Path) -> list[Metrics]:
    """The evaluated rounds in order; a round that was evaluated again counts with its last line."""
    rounds = {}
    for line in path.read_bytes().splitlines():
        metrics = Metrics.decode(line)
        rounds[metrics.round] = metrics
    return [rounds[number] for number in sorted(rounds)]


def write(directory: Path, report: dict[str, Any]) -> Report:
    """Writes report.json and report.html to `directory`. Raises StateError: they cannot be written."""
    typed = _typed(report, directory / "report.json")
    write_atomically(directory / "report.json", f"{json.dumps(report, indent=2)}\n".encode())
    write_atomically(directory / "report.html", page(typed).encode())
    return typed


def read_report(path: Path) -> Report:
    """Read a report.json. Raises StateError: it is missing, or not of a run."""
    try:
        report = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.MsgspecError) as error:
        raise StateError(f"expected a demo's report at {path}: {error}") from None
    return _typed(report, path)


def page(report: Report) -> str:
    """The report as one HTML page."""
    plots = _plots(report)
    classes = report.classes
    if classes is not None and (confusion := confusion_plot(classes)) is not None:
        plots["confusion"] = confusion
    return render(
        "report.html.j2",
        report=report,
        conclusion=conclusion(report),
        levels=list(levels(report)),
        cards=list(cards(report)),
        plots={name: Markup(svg) for name, svg in plots.items()},  # noqa: S704
        figures=figures(report),
        means={
            name: average(getattr(found, name) for found in figures(report).values())
            for name in ("exit", "trunk", "adaptive", "offload")
        },
        gains=_gains(adaptive_over_alone(report), report),
        gains_exit=_gains(adaptive_over_alone_exit(report), report),
        weakest=weakest_classes(report),
        traffic={device.id: total(device) for device in report.devices},
        counted=COUNTED,
        inference=list(rows(report.inference)),
        classes=list(class_rows(classes)) if classes is not None else [],
        confusions=list(confusions(classes)) if classes is not None else [],
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
    gains, reached = _gains(adaptive_over_alone(report), report), figures(report)
    for device in report.devices:
        found = reached[device.id]
        shares = found.exit, found.trunk, found.adaptive, found.offload
        cells = [device.id, f"{device.cut} {device.stage}", *map(_per_cent, shares)]
        if report.baselines:
            alone = report.baselines.alone_accuracy, report.baselines.alone_exit_accuracy
            cells += [*(_per_cent(by_device.get(device.id)) for by_device in alone), gains[device.id]]
        shown.add_row(*map(Text, cells))
    return shown


def _per_cent(share: float | None) -> str:
    """A percentage without its sign, for columns."""
    return "-" if share is None else f"{100 * share:.1f}"


def _gains(found: Comparison | None, report: Report) -> dict[str, str]:
    """By device, the points of a comparison."""
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


def _plots(report: Report) -> dict[str, str]:
    colours = Colours([device.cut for device in report.devices])
    references: dict[str, float | None] = {}
    alone_exit: dict[str, float | None] = {}
    if report.baselines:
        references["centralized"] = report.baselines.centralized_accuracy
        references["alone"] = average(report.baselines.alone_accuracy.values())
        alone_exit["alone-exit"] = average(report.baselines.alone_exit_accuracy.values())
    plots = {}
    for name, compared in (
        ("exit_loss", None),
        ("trunk_loss", None),
        ("exit_accuracy", references | alone_exit),
        ("trunk_accuracy", references),
    ):
        lines = _lines(report, name)
        if lines:
            share = compared is not None
            known = {of: level for of, level in (compared or {}).items() if level is not None}
            plots[name] = over_rounds(name, lines, known, colours, share=share)
    if groups := _accuracy_groups(report):
        plots["by_cut"] = dots("by_cut", groups, colours, percent)
    parts = {device.id: bars_of(report.devices, device) for device in report.devices}
    traffic = [
        Group(device.id if len(parts[device.id]) > 1 else "", device.cut, [
            Bar(part.purpose if len(parts[device.id]) > 1 else device.id, part.bytes)
            for part in parts[device.id]
        ])
        for device in report.devices
    ]  # fmt: skip
    most = max(part.bytes for shown in parts.values() for part in shown)
    plots["sent"] = bars("sent", traffic, colours, size, top=max(most, 1))
    return plots


def _lines(report: Report, figure: str) -> list[Line]:
    lines = []
    for device in report.devices:
        values = {}
        for metrics in report.history:
            measured: DeviceMetrics | None = metrics.devices.get(device.id)
            value = getattr(measured, figure, None)
            if value is not None:
                values[metrics.round] = value
        if values:
            lines.append(Line(device.id, device.cut, values))
    return lines


def _accuracy_groups(report: Report) -> list[Group]:
    """By cut, means over its devices; unknown values are left out."""
    baselines, reached = report.baselines, figures(report)
    alone = baselines.alone_accuracy if baselines else {}
    alone_exit = baselines.alone_exit_accuracy if baselines else {}
    groups = []
    for cut in sorted({device.cut for device in report.devices}):
        devices = [device for device in report.devices if device.cut == cut]
        found = [reached[device.id] for device in devices]
        named = (
            ("trunk", average(one.trunk for one in found), 1.0),
            ("adaptive", average(one.adaptive for one in found), 1.0),
            ("exit", average(one.exit for one in found), 1.0),
            ("alone", average(alone.get(device.id) for device in devices), 0.0),
            ("alone-exit", average(alone_exit.get(device.id) for device in devices), 0.0),
        )
        shown = [Bar(name, value, strength) for name, value, strength in named if value is not None]
        who = devices[0].id if len(devices) == 1 else f"mean of {len(devices)} devices"
        if shown:
            groups.append(Group(f"Cut {cut}, after {devices[0].stage}: {who}", cut, shown))
    if baselines:
        bar = Bar("centralized", baselines.centralized_accuracy, None)
        groups.append(Group("All images in one place", 0, [bar]))
    return groups
