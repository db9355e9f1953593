# SPDX-License-Identifier: Apache-2.0
"""States on their way between ranks: tensors that are equal travel once, and no more than tensors and plain
values is ever unpacked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from splitee.training.state import pack_state, unpack_state
from splitee_export.combination import HeldOutLogits
from splitee_server.rounds.evaluation import Predictions, Score

CANDIDATES = 4  # different tensors of one name and shape that another one is compared with
Known = defaultdict[tuple[Any, ...], list[Tensor]]


def pack(state: Mapping[str, Any]) -> bytes:
    """A state of nested mappings, with each tensor once, whoever has it: after an average all trunks' are
    equal.
    """
    return pack_state(_with_shared(state, defaultdict(list)))


unpack = unpack_state


def _with_shared(state: Mapping[Any, Any], known: Known) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key, value in state.items():
        if isinstance(value, Mapping):
            found[key] = _with_shared(value, known)
        elif isinstance(value, Tensor):
            found[key] = _shared(value, known[key, value.dtype, value.shape])
        else:
            found[key] = value
    return found


def _shared(tensor: Tensor, candidates: list[Tensor]) -> Tensor:
    """A tensor with the same bits that is packed already, or else this one."""
    for candidate in candidates:
        if candidate is tensor or torch.equal(_bits(candidate), _bits(tensor)):
            return candidate
    if len(candidates) < CANDIDATES:
        candidates.append(tensor)
    return tensor


def _bits(tensor: Tensor) -> Tensor:
    """For comparison: -0.0 equals 0.0, and a value that is no number not itself."""
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.int32) if tensor.dtype == torch.float32 else flat.view(torch.uint8)


def pack_score(score: Score) -> bytes:
    """What was predicted for a device's held-out images, in their order."""
    logits = score.logits
    return pack_state(
        {
            "predictions": _as_tensors(vars(score.predictions)),
            "logits": None if logits is None else _as_tensors(vars(logits)),
        }
    )


def unpack_score(data: bytes) -> Score:
    """What `pack_score` has packed."""
    state = unpack_state(data)
    logits = state["logits"]
    return Score(
        [Predictions(**_as_arrays(state["predictions"]))],
        None if logits is None else [HeldOutLogits(**_as_arrays(logits))],
    )


def _as_tensors(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _as_arrays(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}
