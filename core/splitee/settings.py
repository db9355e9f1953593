"""Settings of the command line: flag > SPLITEE_* variable > settings file > default."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from splitee.errors import ConfigError


def setting(*names: str, **attributes: Any) -> Callable[[Any], Any]:
    """A click option that SPLITEE_<NAME> and the settings file can also give."""
    flag = max(names, key=len).split("/")[0]
    variable = "SPLITEE_" + flag.lstrip("-").replace("-", "_").upper()
    attributes.setdefault("show_default", True)
    return click.option(*names, envvar=variable, **attributes)


def _load(context: click.Context, _parameter: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"settings file {path}: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"settings file {path} is not TOML: {error}") from None
    known = {name for name in (p.name for p in context.command.params) if name}
    given = {key.replace("-", "_"): value for key, value in values.items()}
    for key in given:
        if key not in known:
            raise ConfigError(f"settings file {path}: unknown key {key!r}; known: {', '.join(sorted(known))}")
    context.default_map = {**(context.default_map or {}), **given}


settings_file = click.option(
    "--config",
    type=click.Path(path_type=Path),
    envvar="SPLITEE_CONFIG",
    is_eager=True,
    expose_value=False,
    callback=_load,
    help="Settings file (TOML): the flags' names as keys.",
)
