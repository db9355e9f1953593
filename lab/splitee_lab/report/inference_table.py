# SPDX-License-Identifier: Apache-2.0
"""What the devices' released models predict, each in three ways: the figures, and their table."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from rich.table import Table
from rich.text import Text

from splitee.cli.words import percent


class Predictions(msgspec.Struct, frozen=True):
    """The result of one way of predicting. Shares are fractions, times milliseconds per image."""

    accuracy: float
    offload_share: float  # predicted with the trunk
    median_ms: float
    p95_ms: float
    bytes: float  # sent per image


class DeviceInference(msgspec.Struct, frozen=True):
    """One device's released model, in service on its held-out images: those of the evaluation.

    Attributes:
        round: the released one.
        threshold: uncertainty up to which the exit predicts; the model's own.
        threshold_images: held-out images on which it was chosen; 0: it is the run's.
        trunk_accuracy: of the trunk alone, in the evaluation of that round; None: not known.
        local, adaptive, offload: by the exit alone; up to the threshold; always with the trunk.
    """

    id: str
    cut: int
    round: int
    threshold: float
    threshold_images: int
    images: int
    trunk_accuracy: float | None
    local: Predictions
    adaptive: Predictions
    offload: Predictions


COLUMNS = ("device", "predicts", "accuracy", "offload", "median ms", "p95 ms", "KB/image")


def inference_table(results: list[DeviceInference]) -> Table:
    """Each device's three ways of predicting, for a terminal."""
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for name in COLUMNS:
        is_text = name in ("device", "predicts")
        shown.add_column(
            name, justify="left" if is_text else "right", no_wrap=name != "device", overflow="fold"
        )
    for cells in rows(results):
        shown.add_row(*map(Text, cells))
    return shown


def rows(results: list[DeviceInference]) -> Iterator[tuple[str, ...]]:
    """The table's cells: a row for each device and way of predicting."""
    for result in results:
        ways = {
            "exit alone": result.local,
            f"adaptive, {result.threshold:.3f}": result.adaptive,
            "always offloaded": result.offload,
        }
        for index, (way, found) in enumerate(ways.items()):
            yield (
                f"{result.id} (cut {result.cut})" if index == 0 else "",
                way,
                percent(found.accuracy),
                percent(found.offload_share),
                f"{found.median_ms:.1f}",
                f"{found.p95_ms:.1f}",
                f"{found.bytes / 1e3:.1f}",
            )
