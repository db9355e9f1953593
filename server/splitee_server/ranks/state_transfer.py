# SPDX-License-Identifier: Apache-2.0
"""States sent between ranks: equal tensors are sent once, and only tensors and plain values are unpacked."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from msgspec.msgpack import Ext, decode, encode
from torch import Tensor

from splitee.training.sharing import share_equal
from splitee.training.state import pack_state, unpack_state
from splitee_export.combination import HeldOutLogits
from splitee_server.ranks.group import Group
from splitee_server.rounds.evaluation import Predictions, Score

OUTLINE = 1  # code of what stands for a tensor: its type, shape and strides


def pack(state: Mapping[str, Any]) -> bytes:
    """Pack a state of nested mappings, with equal tensors once: after an average all trunks are equal."""
    return pack_state(share_equal(state))


unpack = unpack_state


def send_state(group: Group, ranks: Collection[int], state: Any) -> dict[str, Any]:
    """Send ranks a state of mappings and lists, with its tensors separately, as they are in memory.

    This is faster than `pack`, for states without equal tensors.

    Returns:
        The state, with the tensors that `Group.send_tensors` returns.
    """
    tensors: list[Tensor] = []

    def outline(tensor: Tensor) -> Ext:
        stride = torch.empty_like(tensor, device="meta").stride()  # without gaps
        own = tensor.detach()
        tensors.append(own if own.stride() == stride else own.clone())
        return Ext(OUTLINE, encode((str(tensor.dtype), tensor.shape, stride)))

    outlines = encode(state, enc_hook=outline)
    for rank in ranks:
        group.send(rank, outlines)
    return _with_tensors(outlines, group.send_tensors(ranks, tensors))


def receive_state(group: Group, rank: int) -> dict[str, Any]:
    """Receive what `send_state` sends, to be used before anything is sent to this rank again."""
    state, outlines = group.receive(rank), list[Tensor]()

    def note(_code: int, outline: memoryview) -> None:
        name, shape, stride = decode(outline)
        kind = getattr(torch, name.removeprefix("torch."))
        outlines.append(torch.empty_strided(shape, stride, dtype=kind, device="meta"))

    decode(state, ext_hook=note)
    return _with_tensors(state, group.receive_tensors(rank, outlines))


def _with_tensors(state: bytes, tensors: Iterable[Tensor]) -> dict[str, Any]:
    """A state with tensors in the places of their outlines."""
    following = iter(tensors)
    found: dict[str, Any] = decode(state, ext_hook=lambda _code, _outline: next(following))
    return found


def pack_score(score: Score) -> bytes:
    """Pack the predictions for a device's held-out images, in their order."""
    logits = score.logits
    return pack_state(
        {
            "predictions": _as_tensors(vars(score.predictions)),
            "logits": None if logits is None else _as_tensors(vars(logits)),
        }
    )


def unpack_score(data: bytes) -> Score:
    """Unpack what `pack_score` has packed."""
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
