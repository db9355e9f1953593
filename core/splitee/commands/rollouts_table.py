# SPDX-License-Identifier: Apache-2.0
"""The rollouts of a fleet, as `splitee status` shows them."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from splitee.cli.plain_text import plain, plain_cell
from splitee.protocol.fleet_view import FleetSnapshot
from splitee.protocol.rollout_progress import devices_by_state
from splitee.protocol.rollouts import Rollout, RolloutState

COUNTS = ("in\nservice", "failed", "asleep", "late", "waiting", "later")
STYLES: dict[RolloutState, str] = {"finished": "green", "stopped": "red", "paused": "yellow"}


def rollouts_table(snapshot: FleetSnapshot) -> Table | None:
    """A row a rollout, the newest first; None: the server keeps none."""
    if not snapshot.rollouts:
        return None
    table = Table(box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    table.add_column("rollout", overflow="fold")
    table.add_column("release", overflow="fold")
    table.add_column("state", no_wrap=True)
    for name in ("wave", *COUNTS):
        table.add_column(name, justify="right", no_wrap=True)
    for rollout in snapshot.rollouts:
        table.add_row(*_cells(rollout))
    return table


def rollout_reasons(snapshot: FleetSnapshot) -> Iterator[Text]:
    """Why rollouts are in their states, as far as the server says so."""
    for rollout in snapshot.rollouts:
        if rollout.reason:
            yield Text.assemble(
                plain(rollout.rollout), (f"  {rollout.state}: {plain(rollout.reason)}", "dim")
            )


def _cells(rollout: Rollout) -> tuple[Text, ...]:
    release = plain_cell(f"{rollout.kind} {rollout.version}")
    state = Text(rollout.state, STYLES.get(rollout.state, ""))
    wave = f"{min(rollout.wave, len(rollout.waves))} of {len(rollout.waves)}"
    counts = [f"{count:,}" if count else "" for count in devices_by_state(rollout).values()]
    return plain_cell(rollout.rollout), release, state, *map(plain_cell, (wave, *counts))
