# SPDX-License-Identifier: Apache-2.0
"""Lines that fit a terminal: broken between words, and never between a figure and its unit."""

from __future__ import annotations

import re
import textwrap

HELD = "\N{NO-BREAK SPACE}"
UNIT = re.compile(r"(?<=[0-9]) (?=(?:%|points?|[KMG]?B|MiB|s|min|images?)\b|%)|(?<=±) ")


def wrapped(text: str, width: int) -> str:
    """`text` in lines of at most `width` columns."""
    lines = textwrap.wrap(UNIT.sub(HELD, text), width, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace(HELD, " ")
