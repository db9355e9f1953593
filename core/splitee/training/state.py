# SPDX-License-Identifier: Apache-2.0
"""Packing of states into bytes, and digests of weights."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_crc32_options, set_crc32_options

from splitee.durable import Writable
from splitee.errors import StateError
from splitee.training.sharing import Memory, leaves, memory_of

COUNTER = "num_batches_tracked"  # of BatchNorm: not shared, not averaged, and not used in inference


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of `weights`, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)  # NumPy has no bfloat16
    return digest.hexdigest()


def output_digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over the `weights` that determine a network's output: all but BatchNorm's counters."""
    return weights_digest({name: tensor for name, tensor in weights.items() if not name.endswith(COUNTER)})


def fleet_digest(trunks: Mapping[str, Tensor], clients: Mapping[str, str]) -> str:
    """SHA-256 over the digests of the trunks' tensors, in the order of their names, and of the clients.

    Tensors that share memory are read once.
    """
    known: dict[Memory, str] = {}
    lines = []
    for name in sorted(trunks):
        memory = memory_of(trunks[name])
        if memory not in known:
            known[memory] = weights_digest({"": trunks[name]})
        lines.append(f"{name} {known[memory]}")
    lines += [f"{device} {clients[device]}" for device in sorted(clients)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def first_not_finite(state: Mapping[str, Any]) -> str | None:
    """The path of a tensor in nested `state` that holds a value that is not finite; None: all are finite."""
    known: set[Memory] = set()
    for path, value in leaves(state):
        if isinstance(value, Tensor) and value.is_floating_point() and memory_of(value) not in known:
            known.add(memory_of(value))
            if not torch.isfinite(value.sum(dtype=torch.promote_types(value.dtype, torch.float32))):
                return "/".join(map(str, path))
    return None


def pack_state(state: Mapping[str, Any]) -> bytes:
    """Tensors and plain values as bytes, for a state file."""
    buffer = io.BytesIO()
    state_writer(state)(buffer)
    return buffer.getvalue()


def state_writer(state: Mapping[str, Any]) -> Callable[[Writable], None]:
    """A function that writes the bytes of `pack_state` without having them all in memory."""

    def write(file: Writable) -> None:
        checked = get_crc32_options()
        set_crc32_options(False)  # a quarter of the time; a state file has its SHA-256
        try:
            torch.save(dict(state), file)  # type: ignore[arg-type]  # needs no more
        finally:
            set_crc32_options(checked)

    return write


def unpack_state(data: bytes) -> dict[str, Any]:
    """Load the result of `pack_state`; nothing but tensors and plain values is ever unpickled.

    Raises:
        StateError: the bytes are something else.
    """
    try:
        state = torch.load(io.BytesIO(data), weights_only=True)
    except Exception as error:  # on hostile bytes, torch raises anything
        reason = str(error).partition("\n")[0]
        raise StateError(
            f"a state holds more than tensors and plain values, or is damaged: {reason}"
        ) from None
    if not isinstance(state, dict):
        raise StateError(f"expected a state's fields, got {type(state).__name__}")
    return state
