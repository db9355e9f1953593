# SPDX-License-Identifier: Apache-2.0
"""The `splitee` command of an installation that has one strategy more."""

from __future__ import annotations


def main() -> None:
    import third_strategy  # noqa: F401  which registers it

    from splitee.cli.main import main as splitee

    splitee()
