# SPDX-License-Identifier: Apache-2.0
"""A comparison's tables, results.json, table.md, and its page, report.html."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from markupsafe import Markup
from rich.table import Table
from rich.text import Text

from splitee.cli.words import macs, percent, size
from splitee.durable import write_atomically
from splitee_lab.report.html_page import render
from splitee_lab.report.plots import Bar, Colours, Curve, Group, bars, curves
from splitee_lab.simulate.jobs import Job
from splitee_lab.simulate.results import Figure, MethodResult, Point
from splitee_lab.simulate.targets import Target

COLUMNS = ("method", "accuracy %", "exit %", "adaptive %", "bytes", "compute", "of whole")
HONEST_ONLY = "Hostile clients: {}. Accuracies are means over the honest ones."
LEFT = ("cut", "method", "target", "bound")
FIGURES = {
    "accuracy %": "accuracy",
    "exit %": "exit_accuracy",
    "adaptive %": "adaptive_accuracy",
    "offload %": "offload_share",
}
TARGET_COLUMNS = ("method", "target", "is", "bound", "met")


def write(out: Path, job: Job, results: Sequence[MethodResult], targets: Sequence[Target]) -> None:
    """OUT/results.json, table.md and report.html. `job`: any of them, for the settings that all share.

    Raises:
        StateError: they cannot be written.
    """
    facts = {"settings": job, "methods": results, "targets": targets}
    write_atomically(out / "results.json", msgspec.json.format(msgspec.json.encode(facts), indent=2) + b"\n")
    write_atomically(out / "table.md", markdown(job, results, targets).encode())
    write_atomically(out / "report.html", page(job, results, targets).encode())


def tables(results: Sequence[MethodResult], targets: Sequence[Target]) -> list[Table]:
    """The methods, the methods by cut, and the strategies beside their targets, for a terminal."""
    methods = _table(COLUMNS, _rows(results))
    by_cut = [
        (f"{found.cut}", result.method, *(_share(getattr(found, name)) for name in FIGURES.values()))
        for result in results
        for found in result.by_cut
    ]
    by_cut.sort(key=lambda row: int(row[0]))
    found = [methods]
    if by_cut:
        found.append(_table(("cut", "method", *FIGURES), by_cut))
    if targets:
        found.append(_table(TARGET_COLUMNS, _target_rows(targets)))
    return found


def markdown(job: Job, results: Sequence[MethodResult], targets: Sequence[Target]) -> str:
    """The same for a document: each figure, and its means at every cut."""
    columns = [job.partition]
    for heading in FIGURES:
        columns += [heading, "by cut"]
    columns += COLUMNS[-3:]
    rows = []
    for result in results:
        cells = [result.method]
        for name in FIGURES.values():
            figures = [getattr(found, name) for found in result.by_cut]
            means = [f"{100 * figure.mean:.1f}" for figure in figures if figure is not None]
            cells += [_share(getattr(result, name)), " ".join(means) or "-"]
        rows.append([*cells, *_costs(result)])
    lines = [HONEST_ONLY.format(job.hostile), ""] if job.hostile else []
    lines += _markdown_table(columns, rows)
    if targets:
        lines += ["", *_markdown_table(TARGET_COLUMNS, _target_rows(targets))]
    return "\n".join(lines) + "\n"


def _target_rows(targets: Sequence[Target]) -> list[tuple[str, ...]]:
    return [
        (one.method, one.what, f"{100 * one.value:z.2f} %", one.bound, "yes" if one.met else "no")
        for one in targets
    ]


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows)]


def page(job: Job, results: Sequence[MethodResult], targets: Sequence[Target]) -> str:
    """The comparison as one HTML page."""
    return render(
        "simulation.html.j2",
        job=job,
        results=results,
        columns=COLUMNS,
        left=LEFT[:-1],  # a bound is a figure
        rows=_rows(results),
        target_columns=TARGET_COLUMNS,
        targets=_target_rows(targets),
        spread=any(len(result.seeds) > 1 for result in results),
        plots={name: Markup(svg) for name, svg in _plots(results).items()},  # noqa: S704
    )


def _rows(results: Sequence[MethodResult]) -> list[tuple[str, ...]]:
    return [
        (
            result.method,
            _share(result.accuracy),
            _share(result.exit_accuracy),
            _share(result.adaptive_accuracy),
            *_costs(result),
        )
        for result in results
    ]


def _costs(result: MethodResult) -> tuple[str, str, str]:
    return size(result.bytes.mean), macs(result.macs.mean), percent(result.compute_share.mean)


def _share(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    spread = "" if figure.spread is None else f" ± {100 * figure.spread:.1f}"
    return f"{100 * figure.mean:.1f}{spread}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        shown.add_column(column, justify="left" if column in LEFT else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*map(Text, row))
    return shown


def _plots(results: Sequence[MethodResult]) -> dict[str, str]:
    wanted: dict[str, tuple[Callable[[Point], float], Callable[[Point], float | None], str]] = {
        "over_rounds": (lambda at: at.round, lambda at: at.accuracy, "round"),
        "exit_over_rounds": (lambda at: at.round, lambda at: at.exit_accuracy, "round"),
        "over_bytes": (lambda at: at.bytes / 1e6, lambda at: at.accuracy, "MB"),
        "over_macs": (lambda at: at.macs / 1e9, lambda at: at.accuracy, "GMAC"),
    }
    plots = {}
    for name, (x, y, label) in wanted.items():
        lines = [
            Curve(result.method, [(x(at), value) for at in result.course if (value := y(at)) is not None])
            for result in results
        ]
        drawn = [line for line in lines if line.points]
        if drawn:
            plots[name] = curves(name, drawn, label)
    cuts = sorted({found.cut for result in results for found in result.by_cut})
    if cuts:
        groups = [Group(f"Cut {cut}", cut, _bars(results, cut)) for cut in cuts]
        plots["by_cut"] = bars("by_cut", groups, Colours(cuts), percent, top=1.0)
    return plots


def _bars(results: Sequence[MethodResult], cut: int) -> list[Bar]:
    return [
        Bar(label, figure.mean, strength)
        for result in results
        for found in result.by_cut
        if found.cut == cut
        for label, figure, strength in (
            (result.method, found.accuracy, 1.0),
            (f"{result.method}, exit", found.exit_accuracy, 0.5),
        )
        if figure is not None
    ]
