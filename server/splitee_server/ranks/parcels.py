# SPDX-License-Identifier: Apache-2.0
"""States on their way between ranks: tensors that are equal travel once, and no more than tensors and plain
values is ever unpacked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from splitee.training.sharing import share_equal
from splitee.training.state import pack_state, unpack_state
from splitee_export.combination import HeldOutLogits
from splitee_server.rounds.evaluation import Predictions, Score


def pack(state: Mapping[str, Any]) -> bytes:
    """A state of nested mappings, with each tensor once, whoever has it: after an average all trunks' are
    equal.
    """
    return pack_state(share_equal(state))


pack_step = pack_state  # where no two tensors are equal, and time counts
unpack = unpack_state


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
