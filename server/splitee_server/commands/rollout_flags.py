# SPDX-License-Identifier: Apache-2.0
"""The flags for the pace of a release, of `splitee release` and `splitee server`."""

from __future__ import annotations

import re
from typing import Any

import click

from splitee.cli.bounds import OutOfBounds, given
from splitee.cli.settings import setting
from splitee.errors import ConfigError
from splitee.protocol.release_orders import LATE_AFTER, SHARE
from splitee_server.release.plans import AT_ONCE, RolloutPolicy
from splitee_server.release.wave_sizes import read_waves

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
LONGEST = 315_360_000  # seconds: ten years


class Span(click.ParamType[float]):
    """A span of time as 90s, 45m, 12h or 30d, in seconds."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"([0-9]{1,9})([smhd])", str(value))
        seconds = int(found[1]) * UNITS[found[2]] if found else 0
        if not 0 < seconds <= LONGEST:
            self.fail(
                f"{value!r}: expected a span of time up to 3650d, such as 90s, 45m, 12h or 30d", param, ctx
            )
        return float(seconds)


class Waves(click.ParamType[tuple[str, ...]]):
    """Waves as 1,10%,100%."""

    name = "waves"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return read_waves(str(value))
        except ConfigError as error:
            raise OutOfBounds(f"{given(value, param, ctx)}: {error}", ctx, param) from None


def waves_setting(flag: str = "--waves", **more: Any) -> Any:
    return setting(
        flag,
        type=Waves(),
        metavar="WAVES",
        help="Devices up to each wave of a release, as counts or shares, separated by commas: 1,10%,100%.",
        show_default="100%, all at once",
        **more,
    )


def rollout_policy(
    waves: tuple[str, ...] | None,
    max_failures: str | None = None,
    soak: float = 60.0,
    expires: float = 30 * 86_400.0,
    late_after: float = LATE_AFTER,
) -> RolloutPolicy:
    """Raises ConfigError: a wave names no device, or the failures are no count or share."""
    if max_failures is not None and not re.fullmatch(SHARE, max_failures):
        raise ConfigError(
            f"--max-failures {max_failures}: expected a count or a share of the devices, as 2 or 5%"
        )
    if waves is None and max_failures is None:
        return RolloutPolicy(AT_ONCE.waves, AT_ONCE.max_failures, soak, expires, late_after)
    return RolloutPolicy(waves or AT_ONCE.waves, max_failures or "0", soak, expires, late_after)
