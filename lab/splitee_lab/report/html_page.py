"""Pages that need nothing else: no script, no font, no other host."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from splitee import __version__
from splitee.cli.words import images, percent, share_of, size, span


def render(template: str, **values: Any) -> str:
    """A template of this package with `values` and the version; words.py gives its filters for figures."""
    environment = Environment(
        loader=PackageLoader("splitee_lab.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(images=images, percent=percent, share_of=share_of, size=size, span=span)
    return environment.get_template(template).render(version=__version__, **values)
