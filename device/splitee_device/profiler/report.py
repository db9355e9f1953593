# SPDX-License-Identifier: Apache-2.0
"""A profile for people (tables, a chart) and for programs (JSON)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from splitee.cli.words import MIB, bit_rate, mib, milliseconds, three_digits
from splitee.errors import ConfigError, ExtraMissing
from splitee_device.machine.hardware import Fact
from splitee_device.profiler.choice import Choice
from splitee_device.profiler.cost_model import CutRow, Work
from splitee_device.profiler.costs import Measured

WIDTH = 80  # columns of the table


def as_json(
    facts: Mapping[str, Fact],
    measured: Measured | None,
    work: Work,
    rows: Sequence[CutRow],
    choice: Choice | None,
) -> dict[str, Any]:
    """Everything, in SI units; unknown values are null."""
    return {
        "device": {name: asdict(fact) for name, fact in facts.items()},
        "link": asdict(work.link) if work.link else None,
        "samples": work.samples,
        "steps": work.steps,
        "reserve": work.reserve,
        "cpu_share": work.cpu_share,
        "network": measured.spec.network if measured else None,
        "batch_size": measured.spec.batch_size if measured else None,
        "codec": measured.spec.codec if measured else None,
        "frozen": measured.spec.frozen if measured else None,
        "threads": measured.threads if measured else None,
        "reference": measured.reference if measured else None,
        "memory_of_torch": measured.description.base_memory if measured else None,
        "seconds": round(measured.seconds, 1) if measured else None,
        "cuts": [{**asdict(row), "fits": row.fits} for row in rows],
        "recommended": choice.cut if choice else None,
        "reason": choice.reason if choice else None,
    }


def facts_table(facts: Mapping[str, Fact]) -> RenderableType:
    """The known facts with their sources, and the unknown ones in one line."""
    table = Table(box=None, show_header=False, pad_edge=False)
    known = {name: fact for name, fact in facts.items() if fact.value is not None}
    for name, fact in known.items():
        table.add_row(name.replace("_", " "), _format_value(name, fact), Text(fact.source, "dim"))
    missing = ", ".join(name.replace("_", " ") for name in facts if name not in known)
    return Group(table, Text(f"not known here: {missing}", "dim")) if missing else table


def cuts_table(measured: Measured, work: Work, rows: Sequence[CutRow], choice: Choice) -> RenderableType:
    """One row per cut; the recommended one is marked."""
    spec = measured.spec
    table = Table(box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    table.add_column("")
    table.add_column("cut", justify="right")
    table.add_column("stage", overflow="fold")
    for heading in _NUMBERS:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("fits", overflow="fold")
    for row in rows:
        style = "bold green" if row.cut == choice.cut else "" if row.fits else "dim"
        table.add_row(
            ">" if row.cut == choice.cut else "",
            str(row.cut),
            row.stage,
            *_numbers(row),
            row.obstacle or "yes",
            style=style,
        )
    frozen = f"stages 1..{spec.frozen} frozen, " if spec.frozen else ""
    title = (
        f"{spec.network}, batches of {spec.batch_size}, {spec.codec}, {frozen}"
        f"{measured.threads} thread{'s' if measured.threads > 1 else ''}; rounds of {work.steps} batches"
    )
    return Group(Text(title, "bold"), table, *_notes(measured, work, rows))


_NUMBERS = ("step\nms", "train\nMiB", "infer\nMiB", "KB a\nbatch", "upload\nms", "round\ns", "CPU")


def _numbers(row: CutRow) -> tuple[str, ...]:
    mark = "" if row.measured else "~"
    return (
        f"{mark}{three_digits(1000 * row.step)} ±{three_digits(1000 * row.spread)}",
        f"{mark}{row.memory / MIB:.0f}",
        f"{row.inference_memory / MIB:.0f}",
        three_digits(row.payload / 1000),
        "-" if row.upload is None else three_digits(1000 * row.upload),
        three_digits(row.round),
        f"{row.cpu_share:.0%}",
    )


def _notes(measured: Measured, work: Work, rows: Sequence[CutRow]) -> list[Text]:
    base = measured.description.base_memory
    available = "unknown" if measured.available is None else mib(measured.available)
    notes = [
        f"memory: beyond the {mib(base)} of Python with torch; available {available}, "
        f"{mib(work.reserve)} stay in reserve"
    ]
    if any(not row.measured for row in rows):
        notes.append("~ interpolated between measured cuts")
    if work.link is None:
        notes.append("link not measured: a round is training alone")
    else:
        notes.append(
            f"link: {bit_rate(work.link.upload)} up, {milliseconds(work.link.round_trip)} there and back"
        )
    return [Text(note, "dim") for note in notes]


def _format_value(name: str, fact: Fact) -> str:
    value = fact.value
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    if name.startswith(("memory", "swap")) and isinstance(value, int | float):
        return mib(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def check_chart(path: Path) -> None:
    """Raises ExtraMissing or ConfigError: `plot` could not draw into this file."""
    if find_spec("matplotlib") is None:
        raise ExtraMissing("--plot needs matplotlib: pip install 'hetero-splitee[lab]'")
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix and path.suffix.lower().removeprefix(".") not in kinds:
        raise ConfigError(f"--plot {path}: expected a file that ends in .png, or in .{', .'.join(kinds)}")
    if not path.parent.is_dir():
        raise ConfigError(f"--plot {path}: there is no folder {path.parent}")


def plot(path: Path, measured: Measured, rows: Sequence[CutRow], choice: Choice) -> None:
    """Time per batch and memory at every cut, as a PNG; interpolated cuts are pale.

    Raises:
        ConfigError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    cuts = [row.cut for row in rows]
    bottom = [0.0] * len(rows)
    for part in ("forward", "backward", "optimizer", "encoding", "sending"):
        heights = [1000 * getattr(row, part) for row in rows]
        bars = above.bar(cuts, heights, bottom=bottom, label=part)
        for bar, row in zip(bars, rows, strict=True):
            bar.set_alpha(1.0 if row.measured else 0.5)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    if all(row.upload is not None for row in rows):
        above.plot(cuts, [1000 * (row.upload or 0.0) for row in rows], "k.-", label="upload")
    above.set_ylabel("ms a batch")
    above.legend()
    below.bar(cuts, [row.needed / MIB for row in rows], color="tab:gray")
    if measured.available is not None:
        highest = max(row.needed for row in rows) / MIB
        if measured.available / MIB < 3 * highest:
            below.axhline(measured.available / MIB, color="tab:red", label="available")
            below.legend()
    below.set_ylabel("memory needed, MiB")
    below.set_xlabel("cut")
    below.set_xticks(cuts, [f"{row.cut}{'*' if row.cut == choice.cut else ''}" for row in rows])
    above.set_title(f"{measured.spec.network}: recommended cut {choice.cut}")
    try:
        figure.savefig(path)
    except OSError as error:
        raise ConfigError(f"--plot {path}: {error.strerror}") from None
