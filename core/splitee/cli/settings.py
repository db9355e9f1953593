# SPDX-License-Identifier: Apache-2.0
"""Settings of the command line: flag > SPLITEE_* variable > settings file > default."""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from splitee.cli.bounds import Number, OutOfBounds, given
from splitee.cli.command import Option
from splitee.errors import ConfigError
from splitee.suggestions import did_you_mean, one_of

log = logging.getLogger(__name__)

# Keys that `splitee broker` writes into settings which several commands read, but which only some use.
SHARED_KEYS = ("signing_key", "release_key", "software_key")
FORMER = "splitee.former"  # in the context's `meta`: values of flags and variables under former names


class Setting(Option):
    """An option whose errors list the permitted values."""

    def get_help_extra(self, ctx: click.Context) -> Any:
        extra = super().get_help_extra(ctx)
        if isinstance(self.show_default, str):
            extra["default"] = self.show_default
        elif "default" in extra and isinstance(self.type, Number):
            extra["default"] = extra["default"].removesuffix(".0")
        if isinstance(self.type, Number) and self.type.bounds():
            extra["range"] = self.type.bounds()
        return extra

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        try:
            return super().type_cast_value(ctx, value)
        except click.BadParameter:
            if not isinstance(self.type, click.Choice):
                raise
            known = one_of(str(value), map(str, self.type.choices))
            raise OutOfBounds(f"{given(value, self, ctx)}: {known}", ctx, self) from None


def setting(*names: str, **attributes: Any) -> Callable[[Any], Any]:
    """A click option that SPLITEE_<NAME> and the settings file can also give."""
    flag = next(name for name in names if name.startswith("--")).split("/")[0]
    variable = "SPLITEE_" + flag.lstrip("-").replace("-", "_").upper()
    attributes.setdefault("show_default", True)
    attributes.setdefault("cls", Setting)
    return click.option(*names, envvar=variable, **attributes)


def renamed(old: str, new: str, **attributes: Any) -> Callable[[Any], Any]:
    """The former flag, variable and key of the setting `new`: they still work, and mention the new name.

    A value under the new name takes precedence over one from the same source.
    """

    def take(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value is not None:
            log.warning("%s: this setting is called %s now", given(value, parameter, context), new)
            name = next(one.name for one in context.command.params if new in one.opts)
            former, known = {str(name): value}, context.default_map or {}
            if context.get_parameter_source(str(parameter.name)) is ParameterSource.DEFAULT_MAP:
                context.default_map = {**former, **known}
            else:
                context.default_map = {**known, **former}
                context.meta.setdefault(FORMER, {}).update(former)

    parameter_name = "former_" + old.lstrip("-").replace("-", "_")
    hidden = {"hidden": True, "is_eager": True, "expose_value": False}
    return setting(old, parameter_name, callback=take, **hidden, **attributes)


def _load(context: click.Context, _parameter: click.Parameter, path: Path | None) -> None:
    if path is not None:
        given = read_settings(context.command, path)
        context.default_map = {**(context.default_map or {}), **given, **context.meta.get(FORMER, {})}


def read_settings(command: click.Command, path: Path) -> dict[str, str]:
    """Read the command's parameters from a settings file (TOML).

    Raises:
        ConfigError: it cannot be read, or has a key that is neither one of the command's nor in SHARED_KEYS.
    """
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"settings file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"settings file {path} is not TOML: {error}") from None
    parameters = _keys(command)
    files = {parameter.name for parameter in command.params if isinstance(parameter.type, click.Path)}
    given = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        parameter = parameters.get(name)
        if parameter is None and name in SHARED_KEYS:
            continue
        if parameter is None and name == "id":
            raise ConfigError(
                f"settings file {path} is of device {value!r}, and this command has no --id: the server's is "
                "server/server.toml, a viewer's viewer/viewer.toml"
            )
        if parameter is None:
            known = did_you_mean(name, parameters) or "; known: " + ", ".join(sorted(parameters))
            raise ConfigError(f"settings file {path}: unknown key {key!r}{known}")
        if not isinstance(value, str | int | float):
            raise ConfigError(
                f"settings file {path}: {key} takes one text, number or truth value, not {value}"
            )
        # Checked as a flag is: no 1.5 for a whole number. A file's paths start at the file's folder.
        given[parameter] = str(path.parent / str(value)) if parameter in files else str(value)
    return given


def _keys(command: click.Command) -> dict[str, str]:
    """The settings file's keys and the parameters they set: the long flags, but for --config itself."""
    return {
        flag.lstrip("-").replace("-", "_"): parameter.name
        for parameter in command.params
        if isinstance(parameter, click.Option)
        and parameter.name
        and (parameter.expose_value or parameter.hidden)
        for flag in parameter.opts
        if flag.startswith("--")
    }


def switch(*names: str, **attributes: Any) -> Callable[[Any], Any]:
    """A click option without a variable, for a single call."""
    attributes.setdefault("cls", Setting)
    return click.option(*names, **attributes)


settings_file = switch(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    envvar="SPLITEE_CONFIG",
    is_eager=True,
    expose_value=False,
    callback=_load,
    help="Settings file (TOML) with the flags' names as keys; its paths start at its own folder.",
)
