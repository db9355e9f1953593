# SPDX-License-Identifier: Apache-2.0
"""Weights from a file: safetensors, or what torch has saved; nothing but tensors is ever unpickled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from splitee.errors import ConfigError
from splitee_server.learning.initial.weights import SourceWeights

SAFE = ".safetensors"
PICKLED = (".pt", ".pth")
SAVED = (b"PK", b"\x80")  # how its files begin: zip archives, or pickles (before torch 1.6)
INSIDE = ("state_dict", "model_state_dict", "model")  # keys under which training scripts keep the weights
WRAPPED = "module."  # what torch's DataParallel puts before every name


def read_file(path: Path) -> SourceWeights:
    """Raises ConfigError: there is none, it is damaged, or it holds other things than tensors."""
    if path.suffix not in (SAFE, *PICKLED):
        raise ConfigError(f"--weights {path}: expected a file that ends with {SAFE}, .pt or .pth")
    if not path.is_file():
        raise ConfigError(f"--weights {path}: there is no such file")
    tensors = _read_safe(path) if path.suffix == SAFE else _read_pickled(path)
    if tensors and all(name.startswith(WRAPPED) for name in tensors):
        tensors = {name.removeprefix(WRAPPED): tensor for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise ConfigError(f"--weights {path}: {name} is no dense tensor with values")
    return SourceWeights(path.name, tensors)


def _read_safe(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from None


def _read_pickled(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:
            if not file.read(2).startswith(SAVED):
                raise ValueError("torch has not saved it")
        held: Any = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise ConfigError(
            f"--weights {path}: it holds more than tensors, which could run code and is not loaded: "
            f"save its state_dict alone, best as {SAFE}"
        ) from None
    except Exception as error:  # on damaged bytes, torch raises anything
        raise _damaged(path, error) from None
    inside = next((held[key] for key in INSIDE if isinstance(held, Mapping) and key in held), held)
    if not isinstance(inside, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in inside.items()
    ):
        raise ConfigError(f"--weights {path}: expected a state_dict, tensors by name; save that alone")
    return dict(inside)


def _damaged(path: Path, error: Exception) -> ConfigError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return ConfigError(f"--weights {path}: it is damaged, or no weights file ({reason})")
