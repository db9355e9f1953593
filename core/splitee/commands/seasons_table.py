# SPDX-License-Identifier: Apache-2.0
"""The table of a fleet's seasons in `splitee status`."""

from __future__ import annotations

from datetime import UTC, datetime

from rich.table import Table

from splitee.cli.plain_text import plain_cell
from splitee.protocol.fleet_view import FleetSnapshot
from splitee.protocol.seasons import Season, season_of

COLUMNS = ("rounds", "trained\non", "held\nout", "exit\n%", "trunk\n%", "adaptive\n%")


def seasons_table(snapshot: FleetSnapshot) -> Table | None:
    """One row per season, the current one last; None: there was none before it."""
    if not snapshot.seasons:
        return None
    table = Table(box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    table.add_column("season", overflow="fold")
    table.add_column("ended", no_wrap=True)
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for season in snapshot.seasons:
        table.add_row(*map(plain_cell, (season.run, _day(season.ended), *_cells(season))))
    if snapshot.metrics is not None:
        ended = "now" if not snapshot.finished else "finished"
        now = season_of(snapshot.metrics)
        table.add_row(*map(plain_cell, (now.run, ended, *_cells(now))))
    return table


def _cells(season: Season) -> tuple[str, ...]:
    shares = (season.exit_accuracy, season.trunk_accuracy, season.adaptive_accuracy)
    return (
        str(season.rounds),
        f"{season.train_images:,}" if season.train_images else "",
        f"{season.held_out_images:,}" if season.held_out_images else "",
        *("" if share is None else f"{100 * share:.1f}" for share in shares),
    )


def _day(seconds: float) -> str:
    """The day in UTC; "" if it is unknown."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}" if seconds else ""
