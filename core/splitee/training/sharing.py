# SPDX-License-Identifier: Apache-2.0
"""Sharing of equal tensors in a state, so that each is written once and held once.

After a round that averages, a thousand devices have the same trunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

OPTIMIZER = {"state", "param_groups"}  # the fields of an optimizer's state
FINGERPRINT_ELEMENTS = 16  # elements that distinguish most tensors

Memory = tuple[Any, ...]
Path = tuple[Any, ...]  # keys that lead to a value in nested mappings


def memory_of(tensor: Tensor) -> Memory:
    """A key that is equal for tensors with the same values in the same memory."""
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def leaves(state: Mapping[Any, Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The values in nested `state`, by path."""
    for key, value in state.items():
        if isinstance(value, Mapping):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def share_equal(state: Mapping[Any, Any]) -> dict[Any, Any]:
    """Nested `state` where tensors of one name that are equal, bit for bit, are one and the same tensor.

    The states of optimizers are left as they are, because a loaded one has its tensors changed in place.
    """
    return _Sharing().of(state)


class _Sharing:
    def __init__(self) -> None:
        self._known: dict[Memory, Tensor] = {}
        self._candidates: dict[tuple[Any, ...], list[Tensor]] = {}

    def of(self, state: Mapping[Any, Any]) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for key, value in state.items():
            if isinstance(value, Mapping) and value.keys() != OPTIMIZER:
                found[key] = self.of(value)
            else:
                found[key] = self._share_tensor(key, value) if isinstance(value, Tensor) else value
        return found

    def _share_tensor(self, name: Any, tensor: Tensor) -> Tensor:
        """The first tensor that is equal to this one."""
        memory = memory_of(tensor)
        if memory not in self._known:
            fingerprint = _bits(tensor.detach().reshape(-1)[:FINGERPRINT_ELEMENTS]).cpu().numpy().tobytes()
            candidates = self._candidates.setdefault((name, tensor.device, *memory[1:], fingerprint), [])
            same = (one for one in candidates if equal_bits(one, tensor))
            self._known[memory] = next(same, tensor)
            if self._known[memory] is tensor:
                candidates.append(tensor)
        return self._known[memory]


def equal_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one type and shape hold the same bits."""
    return torch.equal(_bits(one), _bits(other))


def _bits(tensor: Tensor) -> Tensor:
    """The bits, for a comparison in which -0.0 differs from 0.0, and NaN equals itself."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
