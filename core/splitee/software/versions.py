# SPDX-License-Identifier: Apache-2.0
"""Which of two versions is the newer one."""

from __future__ import annotations

import re

_FORM = re.compile(r"(\d{1,6}(?:\.\d{1,6}){0,4})(?:(\.dev|a|b|rc)(\d{1,6}))?", re.ASCII)
_STAGES = {".dev": 0, "a": 1, "b": 2, "rc": 3, None: 4}

VersionKey = tuple[tuple[int, ...], int, int]


def version_key(version: str) -> VersionKey | None:
    """A key that orders versions as PEP 440 does; None: it is not of the form 1.2.3 or 1.2.3rc1."""
    match = _FORM.fullmatch(version)
    if match is None:
        return None
    numbers = [int(number) for number in match[1].split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers), _STAGES[match[2]], int(match[3] or 0)


def is_newer(version: str, than: str) -> bool:
    """Whether `version` is newer. A text that is not a version is older than every version."""
    own, other = version_key(version), version_key(than)
    return own is not None and (other is None or own > other)
