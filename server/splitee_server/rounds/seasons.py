# SPDX-License-Identifier: Apache-2.0
"""The seasons before a run, read from the state of an earlier run."""

from __future__ import annotations

import logging
from pathlib import Path

from splitee.errors import MalformedMessage
from splitee.protocol.fleet import Metrics
from splitee.protocol.seasons import Season, Seasons, season_of
from splitee.training.history import HISTORY, read_history

SEASONS = "seasons.json"  # in a server's state: those before its run

log = logging.getLogger(__name__)


def seasons_up_to(state: Path, run: str, committed: int) -> tuple[Season, ...]:
    """The seasons in a server's state; the last is its own `run`, with `committed` rounds."""
    found: Metrics | None = None
    for metrics in read_history(state):
        if metrics.round <= committed:
            found = metrics
    ended = (state / HISTORY).stat().st_mtime if found is not None else 0.0
    own = Season(run=run, rounds=committed) if found is None else season_of(found, max(ended, 0.0))
    return *seasons_before(state), own


def seasons_before(state: Path) -> tuple[Season, ...]:
    """The seasons before the run of a server's state; none if their file is damaged."""
    try:
        return Seasons.decode((state / SEASONS).read_bytes()).seasons
    except FileNotFoundError:
        return ()
    except (OSError, MalformedMessage) as error:
        log.warning("state: %s: %s; earlier seasons are not shown", state / SEASONS, error)
        return ()
