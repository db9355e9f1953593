# SPDX-License-Identifier: Apache-2.0
"""Seeds: each random choice is seeded by its purpose, such as (seed, device, round, step)."""

from __future__ import annotations

import hashlib


def seed_for(*parts: str | int) -> int:
    """A seed in 0..2^63-1 that depends on every part, such as (seed, device, round)."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
