# SPDX-License-Identifier: Apache-2.0
"""The rollouts of a fleet, as `splitee status` shows them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from splitee.cli.plain_text import plain, plain_cell
from splitee.protocol.fleet_view import FleetSnapshot
from splitee.protocol.rollout_progress import devices_by_state
from splitee.protocol.rollouts import Rollout, RolloutState

COUNTS = ("in\nservice", "failed", "asleep", "late", "waiting", "later")
STYLES: dict[RolloutState, str] = {"finished": "green", "stopped": "red", "paused": "yellow"}
WHOLE_NAME = 24  # characters of a name that is not folded; the name of a run's own release has 22


def rollouts_table(snapshot: FleetSnapshot) -> Table | None:
    """One row per rollout, the newest first, without empty counts; None: the server keeps no rollout."""
    if not snapshot.rollouts:
        return None
    counts = [list(devices_by_state(rollout).values()) for rollout in snapshot.rollouts]
    shown = [at for at in range(len(COUNTS)) if at == 0 or any(row[at] for row in counts)]
    table = Table(box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    longest = max(len(rollout.rollout) for rollout in snapshot.rollouts)
    table.add_column("rollout", overflow="fold", min_width=min(longest, WHOLE_NAME))
    table.add_column("release", overflow="fold")
    table.add_column("state", no_wrap=True)
    for name in ("wave", *(COUNTS[at] for at in shown)):
        table.add_column(name, justify="right", no_wrap=True)
    for rollout, row in zip(snapshot.rollouts, counts, strict=True):
        table.add_row(*_cells(rollout, [row[at] for at in shown]))
    return table


def rollout_reasons(snapshot: FleetSnapshot) -> Iterator[Text]:
    """Why rollouts are in their states, as far as the server says so."""
    for rollout in snapshot.rollouts:
        if rollout.reason:
            yield Text.assemble(
                plain(rollout.rollout), (f"  {rollout.state}: {plain(rollout.reason)}", "dim")
            )


def _cells(rollout: Rollout, counts: Sequence[int]) -> tuple[Text, ...]:
    release = plain_cell(f"{rollout.kind} {rollout.version}")
    state = Text(rollout.state, STYLES.get(rollout.state, ""))
    wave = f"{min(rollout.wave, len(rollout.waves))} of {len(rollout.waves)}"
    figures = [f"{count:,}" if count else "" for count in counts]
    return plain_cell(rollout.rollout), release, state, *map(plain_cell, (wave, *figures))
