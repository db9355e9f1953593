# SPDX-License-Identifier: Apache-2.0
"""Chooses a device's cut from the costs of all cuts, and gives the reason in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from msgspec.structs import replace

from splitee.cli.words import mib, milliseconds, three_digits
from splitee_device.profiler.cost_model import CutRow, Work, modelled_memory
from splitee_device.profiler.costs import Measured

Preference = Literal["fastest", "deepest", "lightest"]
PREFERENCES: tuple[Preference, ...] = ("fastest", "deepest", "lightest")
TIE = 1.02  # rounds closer than this cannot be told apart by measurement


@dataclass(frozen=True)
class Choice:
    """The recommended cut and the reason; None: no cut fits."""

    cut: int | None
    reason: str


def choose(rows: Sequence[CutRow], prefer: Preference, measured: Measured, work: Work) -> Choice:
    """Chooses the cut for a device.

    Among the cuts whose training fits the memory (less the reserve) and the wanted share of the CPU:

    - fastest: the least predicted time of a round; of those within 2 % of it, the fewest bytes per batch.
    - deepest: the last.
    - lightest: the least peak memory of training; of those within 2 % of it, the fewest bytes per batch.
    """
    fitting = [row for row in rows if row.fits]
    if not fitting:
        return Choice(None, _nothing_fits(rows, measured, work))
    if prefer == "deepest":
        best = fitting[-1]
        return Choice(best.cut, _why_deepest(best, rows, measured, work))
    if prefer == "lightest":
        best = _least(fitting, lambda row: row.memory)
        words = f"the least memory to train, {mib(best.memory)}, {_of_those(fitting, rows)}"
    else:
        best = _least(fitting, lambda row: row.round)
        words = f"the fastest round, {three_digits(best.round)} s, {_of_those(fitting, rows)}; {_pace(best)}"
    return Choice(best.cut, f"cut {best.cut} ({best.stage}): {words}{_others(best, fitting, prefer)}")


def _least(rows: Sequence[CutRow], cost: Callable[[CutRow], float]) -> CutRow:
    bound = TIE * min(map(cost, rows))
    return min((row for row in rows if cost(row) <= bound), key=lambda row: (row.payload, cost(row)))


def _of_those(fitting: Sequence[CutRow], rows: Sequence[CutRow]) -> str:
    count = "all" if len(fitting) == len(rows) else f"{len(fitting)} of"
    return f"of the cuts that fit ({count} {len(rows)})"


def _pace(row: CutRow) -> str:
    if row.upload is None:
        return "without a measured link that is training alone (give --broker)"
    compute = row.compute
    slower = "training" if compute >= row.upload else "the link"
    train, send = f"{milliseconds(compute)} to train a batch", f"{milliseconds(row.upload)} to send it"
    return f"{slower} sets its pace: {train}, {send}"


def _others(best: CutRow, fitting: Sequence[CutRow], prefer: Preference) -> str:
    """The cost of the second-best cut."""
    rest = [row for row in fitting if row.cut != best.cut]
    if not rest:
        return ""
    if prefer == "lightest":
        next_best = min(rest, key=lambda row: row.memory)
        return f"; cut {next_best.cut} takes {mib(next_best.memory)}"
    next_best = min(rest, key=lambda row: row.round)
    if next_best.round <= best.round:
        return (
            f"; cut {next_best.cut} is as fast, with {next_best.payload / best.payload:.1f} times the bytes"
        )
    return f"; cut {next_best.cut} takes {three_digits(next_best.round)} s"


def _why_deepest(best: CutRow, rows: Sequence[CutRow], measured: Measured, work: Work) -> str:
    start = f"cut {best.cut} ({best.stage}): the deepest that fits"
    beyond = next((row for row in rows if row.cut > best.cut), None)
    if beyond is None:
        return f"{start}, and the last there is"
    return f"{start}; cut {beyond.cut} does not: {_obstacle(beyond, measured, work)}"


def _obstacle(row: CutRow, measured: Measured, work: Work) -> str:
    if row.obstacle == "memory" and measured.available is not None:
        return (
            f"it needs {mib(row.needed)} and {mib(work.reserve)} in reserve, "
            f"{mib(measured.available)} are available"
        )
    if row.obstacle == "CPU share":
        return f"it keeps {row.cpu_share:.0%} of the CPU busy, {work.cpu_share:.0%} are wanted"
    return row.obstacle


def _nothing_fits(rows: Sequence[CutRow], measured: Measured, work: Work) -> str:
    if not rows:
        tried = "; ".join(f"cut {cut} {why}" for cut, why in list(measured.failed.items())[:1])
        return f"no cut fits this device ({tried}): take a smaller --batch-size or network, or free memory"
    allowed = [row for row in rows if row.cut >= work.lowest_cut] or rows
    nearest = min(allowed, key=lambda row: row.needed)
    start = f"no cut fits this device; cut {nearest.cut}: {_obstacle(nearest, measured, work)}"
    if nearest.obstacle == "CPU share":
        return f"{start}; use fewer --threads, or allow a larger --cpu-share"
    helps = [_smaller_batch(nearest, measured, work), "a smaller network"]
    if not measured.spec.codec.startswith("int8"):
        helps.append("--codec int8, which halves the features that wait to be acknowledged")
    if work.samples:
        helps.append("fewer --samples")
    return f"{start}; what helps: {', '.join(filter(None, helps))}"


def _smaller_batch(row: CutRow, measured: Measured, work: Work) -> str:
    """The largest power of two below the batch size for which the cut would fit."""
    spec, description = measured.spec, measured.description
    allowed = (measured.available or 0) - work.reserve
    size = 1 << (spec.batch_size - 1).bit_length() - 1
    while size >= 2:
        smaller = modelled_memory(replace(spec, batch_size=size), description, row.cut)
        if row.needed - modelled_memory(spec, description, row.cut) + smaller <= allowed:
            return f"--batch-size {size}"
        size //= 2
    return ""
