# SPDX-License-Identifier: Apache-2.0
"""`--recipe`: a named set of defaults for a run's settings."""

from __future__ import annotations

import logging
from typing import Any

import click
from click.core import ParameterSource

from splitee.cli.settings import setting

AUTO, PLAIN = "auto", "plain"
METHOD_ALONE: dict[str, Any] = {
    "client_averaging": "none",
    "server_momentum": 0.0,
    "exits": "own",
    "deep_supervision": 0.0,
    "statistics_batches": 0,
    "soft_labels": 0.0,
}
"""The method as published: each device has an exit of its own, and client networks are not averaged."""

log = logging.getLogger(__name__)

recipe_setting = setting(
    "--recipe",
    type=click.Choice([AUTO, PLAIN]),
    default=AUTO,
    help="Defaults of training settings; auto: those that were measured to help; plain: the method as "
    "published.",
)
"""Adds the flag to a command."""


def follow(recipe: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The current command's settings by name, with the recipe's value for each that was not given.

    A setting is given by a flag, a variable, a settings file or a protocol. Logs the resulting values.
    """
    source = click.get_current_context().get_parameter_source
    if recipe == PLAIN:
        taken = {
            name: value for name, value in METHOD_ALONE.items() if source(name) == ParameterSource.DEFAULT
        }
        settings = {**settings, **taken}
    chosen = ", ".join(f"{name.replace('_', ' ')} {settings[name]}" for name in METHOD_ALONE)
    log.info("recipe %s: %s", recipe, chosen)
    return settings
