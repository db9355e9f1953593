"""The flags that say how a run learns, shared by `splitee server` and the simulation."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from splitee.cli.run_flags import declared, run_setting, run_settings
from splitee.cli.settings import setting
from splitee_server.commands.recipe import follow, recipe_setting
from splitee_server.learning.initial.sources import HELP
from splitee_server.learning.strategies.registry import with_setting


def strategy_setting(name: str) -> Callable[[Any], Any]:
    """The flag of a setting that belongs to some strategies; its help names them."""
    return run_setting(name, help=f"{declared()[name].help} (strategy {with_setting(name)})")


def learning_settings(command: Any) -> Any:
    """Adds the flags to a command, whose settings follow its `--recipe`."""

    @wraps(command)
    def following(*arguments: Any, recipe: str, **settings: Any) -> Any:
        return command(*arguments, **follow(recipe, settings))

    first = run_settings(
        "learning_rate",
        "trunk_learning_rate",
        "optimizer",
        "schedule",
        "warm_up",
        "momentum",
        "weight_decay",
        "clip_gradient",
        "augmentation",
        "balanced_loss",
        "soft_labels",
        "client_averaging",
        "server_momentum",
        "freeze",
    )
    normalize = run_setting(
        "normalize", metavar="MEAN/STD", show_default="those of the weights, else 0.5/0.5"
    )
    exits = run_setting("exits", default="fleet")
    deep_supervision = run_setting("deep_supervision", default=0.3)
    statistics = run_setting("statistics_batches", default=4)
    averages = run_settings("weighting", "average", "largest_share", "clip_updates", "largest_loss")
    last = strategy_setting("aggregation_every")(averages(following))
    return recipe_setting(first(exits(deep_supervision(statistics(normalize(last))))))


threshold_setting = run_setting("threshold", default=0.4)
"""Adds the flag of the uncertainty up to which exits predict, as a run begins."""
weights_setting = setting("--weights", metavar="SOURCE", help=HELP, show_default=False)
"""Adds the flag that names the weights a run begins from."""
