# SPDX-License-Identifier: Apache-2.0
"""The flags for a run's training, shared by `splitee server` and the simulation."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import wraps
from typing import Any

from splitee.cli.command import section
from splitee.cli.pairs import require
from splitee.cli.run_flags import all_settings, run_setting, run_settings
from splitee.cli.settings import setting
from splitee.errors import ConfigError
from splitee.protocol.run_spec import RunSpec
from splitee_server.commands.recipe import follow, recipe_setting
from splitee_server.learning.strategies.registry import STRATEGIES, with_setting


def strategy_setting(name: str) -> Callable[[Any], Any]:
    """The flag of a setting that belongs to some strategies; its help names them."""
    of = f" (with --strategy {with_setting(name)})."
    return run_setting(name, help=all_settings()[name].help.removesuffix(".") + of)


def learning_settings(command: Any) -> Any:
    """Adds the flags to a command, whose settings follow its `--recipe`."""

    @wraps(command)
    def following(*arguments: Any, recipe: str, **settings: Any) -> Any:
        _check_counterparts(settings)
        return command(*arguments, **follow(recipe, settings))

    training = section(
        "Training",
        recipe_setting,
        run_settings("batch_size", "steps", "learning_rate", "trunk_learning_rate", "optimizer", "schedule"),
        run_settings("warm_up", "momentum", "weight_decay", "clip_gradient", "augmentation", "balanced_loss"),
        run_settings("soft_labels", "freeze"),
        run_setting("exits", default="fleet"),
        run_setting("deep_supervision", default=0.3),
        run_setting("statistics_batches", default=4),
        run_setting("normalize", metavar="MEAN/STD", show_default="those of the weights, else 0.5/0.5"),
    )
    averaging = section(
        "Averaging",
        run_settings("client_averaging", "server_momentum", "weighting", "average", "largest_share"),
        run_settings("clip_updates", "largest_loss"),
        strategy_setting("aggregation_every"),
        strategy_setting("trunk_momentum"),
    )
    return training(averaging(following))


def _check_counterparts(settings: dict[str, Any]) -> None:
    layerwise = settings["client_averaging"] == "layerwise"
    _check("server_momentum", settings, "--client-averaging layerwise", layerwise)
    _check("statistics_batches", settings, "--client-averaging layerwise", layerwise)
    _check("deep_supervision", settings, "--exits fleet", settings["exits"] == "fleet")


def check_strategy_settings(strategies: Collection[str], settings: dict[str, Any]) -> None:
    """Raises ConfigError: a flag was given that belongs to none of these strategies."""
    for name in ("aggregation_every", "trunk_momentum", "order"):
        of = with_setting(name)
        _check(name, settings, f"--strategy {of}", not set(strategies).isdisjoint(of.split(", ")))


def check_timed_steps(spec: RunSpec) -> None:
    """Raises ConfigError: `--steps` is a time, and a setting needs equal numbers of batches."""
    unlike = {
        "--soft-labels": spec.soft_labels,
        "--aggregation-every": spec.aggregation_every,
        "--order device": spec.order == "device",
        f"--strategy {spec.strategy}": STRATEGIES[spec.strategy].joint,
    }
    for flag, is_set in unlike.items():
        if spec.round_seconds and is_set:
            raise ConfigError(
                f"{flag} does not go with --steps time:{spec.round_seconds:g}, which gives devices different "
                "numbers of batches: give --steps a number"
            )


def _check(name: str, settings: dict[str, Any], counterpart: str, is_there: bool) -> None:
    setting = all_settings()[name]
    require(counterpart, is_there or settings[name] == setting.default, setting.flag)


threshold_setting = run_setting("threshold", default=0.4, metavar="ENTROPY")
"""Adds the flag of the uncertainty up to which exits predict, at the start of a run."""
weights_setting = setting(
    "--weights",
    metavar="SOURCE",
    help="Initial weights: torchvision (its published ones), FILE.safetensors, FILE.pt, or run:DIR (the last "
    "commit of an earlier run; DIR is its server's --state).",
    show_default="random ones by --seed",
)
"""Adds the flag for a run's initial weights."""
