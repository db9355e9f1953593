# SPDX-License-Identifier: Apache-2.0
"""The flags for the state that several predictions agree on, and for the latest image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from splitee.cli.bounds import OutOfBounds, given, number
from splitee.cli.flags import option_group
from splitee.cli.pairs import require
from splitee.cli.settings import setting
from splitee.errors import ConfigError
from splitee_device.inference.agreement import WEIGHTED, parse_rule
from splitee_device.inference.latest_image import LatestImage
from splitee_device.inference.predicted_states import WEIGHTED_VOTES, AgreementCriteria


class RuleType(click.ParamType[str]):
    """A rule for when predictions agree, as `parse_rule` accepts it."""

    name = "RULE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            parse_rule(str(value))
        except ConfigError as error:
            raise OutOfBounds(f"{given(value, param, ctx)}: {error}", ctx, param) from None
        return str(value)


@dataclass(frozen=True)
class AgreementOptions:
    """How predictions are combined into a state, and where the latest image is kept; None: nowhere."""

    criteria: AgreementCriteria = WEIGHTED_VOTES
    keep_latest: Path | None = None

    def latest_image(self, watched: Path | None) -> LatestImage | None:
        """Raises ConfigError: it would lie in the watched folder, or its folder does not exist."""
        if self.keep_latest is None:
            return None
        if watched is not None and self.keep_latest.resolve().parent == watched.resolve():
            raise ConfigError(
                "--keep-latest lies in the folder of --watch: the image would be classified again and again"
            )
        return LatestImage(self.keep_latest)


def require_images(are_there: bool) -> None:
    """Raises ConfigError: a flag of this group was given, but no source of images."""
    require("--watch, --camera or --stdin", are_there, "--agree", "--unsure-above", "--keep-latest")


_OPTIONS = (
    setting(
        "--agree",
        type=RuleType(),
        default=WEIGHTED,
        metavar=RuleType.name,
        help="When predictions agree, so that the state changes: 3, three images in a row; 3/5, three of the "
        "last five; weighted, each image by its probability.",
    ),
    setting(
        "--unsure-above",
        type=number(0, 1),
        metavar="ENTROPY",
        help="Normalised entropy above which an image that the trunk has not predicted counts as unsure.",
        show_default="none",
    ),
    setting(
        "--keep-latest",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="File on this device that the latest image is kept in.",
        show_default="none",
    ),
)


def _options(agree: str, unsure_above: float | None, keep_latest: Path | None) -> AgreementOptions:
    return AgreementOptions(AgreementCriteria(agree, unsure_above), keep_latest)


agreement_options = option_group("agreement", _options, *_OPTIONS, title="State")
"""Adds the flags; the command gets them as its argument `agreement: AgreementOptions`."""
