"""What the devices' released models answered, each in three ways: the figures, and their table."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from rich.table import Table
from rich.text import Text

from splitee.cli.words import percent


class Answers(msgspec.Struct, frozen=True):
    """What one way of answering came to. Shares are fractions, times milliseconds a picture."""

    accuracy: float
    offload_share: float  # answered by the trunk
    median_ms: float
    p95_ms: float
    bytes: float  # sent, a picture


class DeviceInference(msgspec.Struct, frozen=True):
    """One device's released model on its held-out pictures."""

    id: str
    cut: int
    threshold: float
    pictures: int
    local: Answers
    adaptive: Answers
    offload: Answers


def inference_table(results: list[DeviceInference]) -> Table:
    """Each device's three ways of answering, for a terminal."""
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("device", "answers", "accuracy", "offload", "median ms", "p95 ms", "KB/image"):
        shown.add_column(name, justify="left" if name in ("device", "answers") else "right", no_wrap=True)
    for cells in rows(results):
        shown.add_row(*map(Text, cells))
    return shown


def rows(results: list[DeviceInference]) -> Iterator[tuple[str, ...]]:
    """The table's cells: a row for each device and way of answering."""
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
