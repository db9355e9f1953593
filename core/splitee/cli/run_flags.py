# SPDX-License-Identifier: Apache-2.0
"""Flags for the settings of a run, which are declared in `splitee.protocol.run_spec`."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click
import msgspec
from msgspec import inspect

from splitee.cli.bounds import CountOrAuto, Number
from splitee.cli.input_options import InputType
from splitee.cli.round_size import SampleSize, Steps, to_fields
from splitee.cli.settings import setting
from splitee.errors import ConfigError
from splitee.protocol.codecs import AUTO, CODECS
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import PROTOCOL
from splitee.samples.fitting import format_shape
from splitee.validation_errors import format_error

OWN_KINDS: Mapping[str, click.ParamType[Any]] = {
    "input_shape": InputType(),
    "freeze": CountOrAuto(),
    "sample": SampleSize(),
    "steps": Steps(),
}
"""The types of flags that do not follow from their fields' types."""


@dataclass(frozen=True)
class RunSetting:
    """One field of RunSpec that users can set.

    Attributes:
        kind: type of the flag's value; None: any text.
        flag: the flag that sets it.
        costs: whether it changes the cost of a device's training step.
    """

    name: str
    kind: click.ParamType[Any] | None
    default: Any
    help: str
    costs: bool
    flag: str


@cache
def all_settings() -> dict[str, RunSetting]:
    """All settings of a run, by their fields' names."""
    described = inspect.type_info(RunSpec)
    assert isinstance(described, inspect.StructType)
    found = {}
    for field in described.fields:
        extra = field.type.extra if isinstance(field.type, inspect.Metadata) else None
        if extra is not None and "help" in extra:
            default = None if field.default is msgspec.NODEFAULT else field.default
            kind = _kind(field.name, field.type)
            flag = extra["flag"] or "--" + field.name.replace("_", "-")
            found[field.name] = RunSetting(field.name, kind, default, extra["help"], extra["costs"], flag)
    return found


def run_setting(name: str, *flags: str, **attributes: Any) -> Callable[[Any], Any]:
    """The option for a field of RunSpec. `flags`, `attributes`: overrides of those of the field."""
    found = all_settings()[name]
    if isinstance(found.default, bool):
        flags = flags or (f"{found.flag}/--no-{name.replace('_', '-')}",)
    elif found.kind is not None:
        attributes.setdefault("type", found.kind)
    attributes.setdefault("default", found.default)
    if isinstance(found.kind, InputType):
        attributes["default"] = format_shape(attributes["default"])  # as users write it, for the help
        attributes.setdefault("metavar", found.kind.name)
    attributes.setdefault("help", found.help)
    return setting(*(flags or (found.flag, name)), **attributes)


def run_settings(*names: str) -> Callable[[Any], Any]:
    """The options for several fields, in this order."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for name in reversed(names):
            command = run_setting(name)(command)
        return command

    return add


def build_run_spec(**settings: Any) -> RunSpec:
    """Build the specification of a new run from a command's settings.

    Without a setting `run`, the run is named after the time.

    Raises:
        ConfigError: a setting that the flags could not check is out of bounds.
    """
    name = f"{time.strftime('%Y%m%dT%H%M%S')}-{time.time_ns() % 0xFFFF:04x}"
    try:
        fields = {"protocol": PROTOCOL, "run": name, "fused": True, **to_fields(settings)}
        return msgspec.convert(fields, RunSpec)
    except msgspec.ValidationError as error:
        raise ConfigError(_describe_error(error, settings)) from None


def _describe_error(error: msgspec.ValidationError, settings: dict[str, Any]) -> str:
    """An error of msgspec, with the flag's name instead of the field's."""
    words = format_error(error, settings)
    name = re.match("[a-z_]*", words)[0]  # type: ignore[index]
    found = all_settings().get(name)
    return words if found is None else found.flag + words.removeprefix(name)


def _kind(name: str, described: inspect.Type) -> click.ParamType[Any] | None:
    if name == "codec":
        return click.Choice([*CODECS, AUTO])
    if name in OWN_KINDS:
        return OWN_KINDS[name]
    hint = get_type_hints(RunSpec)[name]
    if get_origin(hint) is Literal:
        return click.Choice(get_args(hint))
    while isinstance(described, inspect.Metadata):
        described = described.type
    if isinstance(described, inspect.IntType | inspect.FloatType):
        least = described.ge if described.gt is None else described.gt
        kind = int if isinstance(described, inspect.IntType) else float
        return Number(kind, least, described.le, above=described.gt is not None)
    return None
