"""The flags that say how a run learns, shared by `splitee server` and the simulation: fields of RunSpec."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import click
import msgspec

from splitee.cli.settings import setting
from splitee.protocol.fields import Augmentation, ClientAveraging, LearningSchedule, Optimizer, Weighting
from splitee.protocol.run_spec import RunSpec

DEFAULTS = {field.name: field.default for field in msgspec.structs.fields(RunSpec)}


def _one_of(kind: Any) -> click.Choice[str]:
    return click.Choice(get_args(kind))


def _field(flag: str, kind: Any, help_text: str) -> Callable[[Any], Any]:
    """A flag for the RunSpec field of its name."""
    default = DEFAULTS[flag.lstrip("-").replace("-", "_")]
    return setting(flag, type=kind, default=default, help=help_text)


_SETTINGS = (
    _field("--learning-rate", float, "The highest."),
    _field("--trunk-learning-rate", float, "The trunk's highest; 0: as the devices'."),
    _field("--optimizer", _one_of(Optimizer), "Of devices and trunks; sgd has Nesterov momentum."),
    _field("--schedule", _one_of(LearningSchedule), "Of the learning rate over the run."),
    _field("--warm-up", float, "Share of the run in which the learning rate rises."),
    _field("--momentum", float, "For adamw its first decay rate."),
    _field("--weight-decay", float, ""),
    _field("--augmentation", _one_of(Augmentation), "Of training pictures, on the device."),
    setting(
        "--balanced-loss/--no-balanced-loss",
        default=DEFAULTS["balanced_loss"],
        help="Devices' losses allow for their own mix of classes: for devices that have unlike ones.",
    ),
    _field(
        "--soft-labels",
        float,
        "Weight of the trunk's answers, of the round before, in what exits learn from: for long runs on few "
        "pictures; 0: none are sent.",
    ),
    _field(
        "--client-averaging",
        _one_of(ClientAveraging),
        "Of client networks after each round, for which they travel both ways; layerwise: with the trunks.",
    ),
    _field(
        "--aggregation-every",
        int,
        "Batches after which `averaging` averages its trunks within a round; 0: after rounds only.",
    ),
    _field("--weighting", _one_of(Weighting), "Of averages: by the devices' samples, or the same for all."),
)


def run_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the flags to a command."""
    for option in reversed(_SETTINGS):
        command = option(command)
    return command
