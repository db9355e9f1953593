# SPDX-License-Identifier: Apache-2.0
"""Names of all that can be simulated: the command line needs them before it loads any of it."""

from __future__ import annotations

import re

from splitee.errors import ConfigError
from splitee.suggestions import did_you_mean

BASELINES = ("centralized", "alone", "alone-exit", "fedavg", "splitfed", "cse-fsl", "fsl-sage")
HOSTILE = ("flip-labels", "flip-sign", "constant", "noise")


def parse_hostile(text: str) -> tuple[int, str]:
    """How many clients are hostile, and how, of `COUNT:KIND`; empty: none. Raises ConfigError."""
    count, _, kind = text.partition(":")
    if not text:
        return 0, ""
    if not re.fullmatch("[1-9][0-9]{0,3}", count) or kind not in HOSTILE:
        known, meant = ", ".join(HOSTILE), did_you_mean(kind, HOSTILE)
        raise ConfigError(f"--hostile: expected COUNT:KIND with one of {known}; got {text!r}{meant}")
    return int(count), kind
