# SPDX-License-Identifier: Apache-2.0
"""`--resident`: how many devices' trunks are in memory at once, and what it cannot be combined with."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from splitee.cli.bounds import whole
from splitee.cli.run_flags import all_settings
from splitee.cli.settings import setting
from splitee.errors import ConfigError
from splitee_server.learning.strategies.registry import with_setting

STRATEGY = with_setting("trunk_momentum")  # which have a trunk for each device
# A trunk can be added to a sum and freed if its weight is known then, and it is not needed later.
NEEDED = {
    "trunk_momentum": "dropped",
    "aggregation_every": 0,
    "average": "mean",
    "largest_share": 1,
    "clip_updates": 0,
}

resident_setting = setting(
    "--resident",
    type=whole(0),
    default=0,
    metavar="COUNT",
    help="Largest number of devices' trunks in memory: so many devices are served at a time, with the same "
    f"result; 0: all at once (with --strategy {STRATEGY} and --trunk-momentum dropped).",
)
"""Adds the flag."""


def check_resident(resident: int, strategies: Collection[str], run: dict[str, Any]) -> None:
    """Raises ConfigError: the run's settings need all trunks at once, or there is one for all devices."""
    if not resident:
        return
    if set(strategies).isdisjoint(STRATEGY.split(", ")):
        raise ConfigError(f"--resident {resident} does nothing without --strategy {STRATEGY}")
    for name, needed in NEEDED.items():
        if run[name] != needed:
            raise ConfigError(
                f"--resident {resident} needs {all_settings()[name].flag} {needed}, this is {run[name]}: "
                "all devices' trunks would be needed at once"
            )
