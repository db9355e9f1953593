# SPDX-License-Identifier: Apache-2.0
"""Builds a network from its name: any torchvision classifier, or the user's `module:factory`."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from traceback import walk_tb
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torchvision import models

from splitee.errors import NetworkError, Terminated
from splitee.samples.fitting import format_shape

STEMS = ("imagenet", "small")


def classifiers() -> list[str]:
    """The names of all torchvision classifiers, sorted."""
    return models.list_models(module=models)  # type: ignore[no-any-return]


def make(
    name: str,
    *,
    num_classes: int,
    input_shape: tuple[int, ...],
    stem: str,
    seed: int,
    device: str,
) -> nn.Module:
    """A freshly initialised network; the global random state is left as it was.

    Raises NetworkError: the name, the stem or the input's shape does not fit.
    """
    if stem not in STEMS:
        raise NetworkError(f"unknown stem {stem!r}: choose one of {', '.join(STEMS)}")
    build = _factory(name) if ":" in name else _classifier(name, input_shape)
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also reset the generators of the GPUs, which fork_rng leaves out here.
        torch.default_generator.manual_seed(seed)
        network = _call(name, build, num_classes, device)
        if stem == "small":
            _shrink_stem(name, network)
    return network


def check_factory(name: str, allowed: str | None, *, whose: str, command: str) -> None:
    """Check that this machine's user has named the factory: neither the wire nor a file may choose code.

    Args:
        allowed: the factory that the user has named.
        whose: whose network `name` is, for the error.
        command: the one in which the user can confirm it.

    Raises:
        NetworkError: `name` is another factory.
    """
    if ":" in name and name != allowed:
        raise NetworkError(
            f"{whose} network is the factory {name!r}, code that would run here: "
            f"{command} with --network {name} if that is meant"
        )


def _call(name: str, build: Callable[..., nn.Module], num_classes: int, device: str) -> nn.Module:
    try:
        with torch.device(device):
            network = build(num_classes=num_classes)
    except BaseException as error:  # a factory is the user's code
        _let_signals_pass(error)
        if device == "meta":  # some, such as the regnets, compute their widths with tensors
            return _call(name, build, num_classes, "cpu").to(device)
        raise NetworkError(f"{name} cannot be built: {_describe_error(name, error)}") from error
    if not isinstance(network, nn.Module):
        raise NetworkError(f"{name} must return a torch.nn.Module, it returned {type(network).__name__}")
    return network


def _factory(name: str) -> Callable[..., nn.Module]:
    module_name, _, attribute = name.partition(":")
    module = _imported(name, module_name)
    try:
        found = getattr(module, attribute)
    except AttributeError:
        raise NetworkError(f"network {name!r}: module {module_name!r} has no {attribute!r}") from None
    if not callable(found):
        raise NetworkError(f"network {name!r}: {attribute!r} is not callable; give a function of num_classes")
    return found  # type: ignore[no-any-return]


def _imported(name: str, module_name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except BaseException as error:  # a module is the user's code
        _let_signals_pass(error)
        if _error_location(name, error):
            raise NetworkError(f"{name} cannot be imported: {_describe_error(name, error)}") from error
        if isinstance(error, ModuleNotFoundError):
            raise NetworkError(
                f"network {name!r}: no module named {error.name!r}; "
                "set PYTHONPATH to the folder that holds it"
            ) from None
        raise NetworkError(f"network {name!r}: expected module:factory: {first_line(error)}") from error


def _let_signals_pass(error: BaseException) -> None:
    if isinstance(error, (KeyboardInterrupt, Terminated)):
        raise error


def _describe_error(name: str, error: BaseException) -> str:
    """What was raised, and for a user's own network also where."""
    reason = error.msg if isinstance(error, SyntaxError) else first_line(error)
    location = _error_location(name, error)
    return f"{type(error).__name__}: {reason}" + (f" ({location})" if location else "")


def _error_location(name: str, error: BaseException) -> str | None:
    """The file and line of the user's own code that caused an error; None: it was not that code.

    That is the innermost line outside Python's and installed packages; the factory's own package counts, too.
    """
    package, colon, _ = name.partition(":")
    if not colon:
        return None
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f"{error.filename}, line {error.lineno}"
    _ours, *called = walk_tb(error.__traceback__)
    for frame, line in reversed(called):
        file = frame.f_code.co_filename
        module = str(frame.f_globals.get("__name__"))
        if module.partition(".")[0] == package.partition(".")[0] or not _is_installed(file):
            return f"{file}, line {line}"
    return None


def _is_installed(file: str) -> bool:
    path = Path(file)
    return (
        file.startswith("<")  # the import system, and what `exec` runs
        or path.is_relative_to(Path(os.__file__).parent)
        or not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
    )


def check_classifier(name: str) -> None:
    """Raises NetworkError: torchvision has no classifier of this name."""
    names = classifiers()
    if name not in names:
        near = get_close_matches(name, names, n=3)
        hint = f"nearest: {', '.join(near)}" if near else "`splitee cuts --all` lists the names"
        raise NetworkError(f"unknown network {name!r}; {hint}; or give module:factory")


def _classifier(name: str, input_shape: tuple[int, ...]) -> Callable[..., nn.Module]:
    check_classifier(name)
    if len(input_shape) != 3 or input_shape[0] != 3:
        raise NetworkError(f"{name} needs images with 3 channels (3xHxW), not {format_shape(input_shape)}")
    options = _options(name, input_shape[1], input_shape[2])
    return lambda num_classes: models.get_model(name, weights=None, num_classes=num_classes, **options)


def _options(name: str, height: int, width: int) -> dict[str, Any]:
    """Options that some constructors need: the size of their input, and to have only one output."""
    if name.startswith("vit_"):
        if height != width:
            raise NetworkError(f"{name} needs square images, not {height}x{width}")
        _check_sides(name, height, width, int(name.rpartition("_")[2]))  # its patches
        return {"image_size": height}
    if name.startswith("maxvit"):
        _check_sides(name, height, width, 32 * 7)  # its windows, after it has halved the sides five times
        return {"input_size": (height, width)}
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": True}
    return {}


def _check_sides(name: str, height: int, width: int, multiple: int) -> None:
    if height % multiple or width % multiple:
        raise NetworkError(
            f"{name} needs images whose sides are multiples of {multiple} pixels, not {height}x{width}"
        )


def smallest_input(name: str) -> str | None:
    """The least height and width that torchvision documents for a classifier, such as `75x75`."""
    if ":" in name:
        return None
    return format_shape(models.get_model_weights(name).DEFAULT.meta["min_size"])


def _shrink_stem(name: str, network: nn.Module) -> None:
    """The usual 32-pixel stem of residual networks: 3x3 with stride 1, and no pooling."""
    if not isinstance(network, models.ResNet):
        raise NetworkError(f"stem 'small' is for the resnets; use stem 'imagenet' with {name}")
    old = network.conv1
    network.conv1 = nn.Conv2d(3, old.out_channels, 3, padding=1, bias=False, device=old.weight.device)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]
