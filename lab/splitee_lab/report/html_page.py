# SPDX-License-Identifier: Apache-2.0
"""Pages that need nothing else: no script, no font, no other host."""

from __future__ import annotations

from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, PrefixLoader, StrictUndefined

from splitee import __version__
from splitee.cli.words import images, interval, mib, percent, size, span


def render(template: str, **values: Any) -> str:
    """A template of this package with `values` and the version; words.py gives its filters for figures.

    It may include what the pages of `splitee_web` share, as `shared/FILE`.
    """
    shared = PrefixLoader({"shared": PackageLoader("splitee_web", "static")})
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("splitee_lab.report"), shared]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        images=images, interval=interval, mib=_mib, moment=_moment, percent=percent, size=size, span=span
    )
    return environment.get_template(template).render(version=__version__, **values)


def _mib(count: int | None) -> str:
    return "-" if count is None else mib(count)


def _moment(iso: str) -> str:
    """ "2026-11-29T13:37:00+0100" as "2026-11-29 13:37 +0100"."""
    return f"{iso[:10]} {iso[11:16]} {iso[19:]}".rstrip()
