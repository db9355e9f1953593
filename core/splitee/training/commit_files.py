# SPDX-License-Identifier: Apache-2.0
"""A server's committed rounds on disk: each state whole, once; what changes of it later, in a file beside it.

Tensors that are equal, as all trunks are after an average, are written once, and share memory when they are
read: a commit of a thousand devices is little more than one network. BatchNorm's statistics are taken anew
after a commit, and change a few tensors of it. Flash memory wears by what is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from splitee.durable import StateDirectory
from splitee.errors import StateError
from splitee.training.sharing import Memory, Path, leaves, memory_of, share_equal
from splitee.training.state import packing, unpack_state


class CommitFiles:
    """States of rounds, nested mappings of tensors and plain values, in a state directory."""

    def __init__(self, directory: StateDirectory) -> None:
        self._directory = directory
        self._number = 0  # the round that `_base` and `_digests` are of
        self._base = ""  # SHA-256 of its whole state, as it was written
        self._digests: dict[Path, bytes] = {}  # of its tensors; b"" for plain values

    def save(self, number: int, state: Mapping[str, Any], *, changes_follow: bool = True) -> None:
        """The state after round `number`, durable when this returns.

        Of a round that this object has saved before, only what has changed is written.

        Args:
            changes_follow: it is likely to be saved once more.
        """
        state = share_equal(state)
        digests = _digests(state) if changes_follow or number == self._number else {}
        if number == self._number and digests.keys() == self._digests.keys():
            self._save_changes(number, state, digests)
            return
        self._number = 0  # until it is written
        base = self._directory.save_round(number, packing(state))
        if changes_follow:
            self._number, self._base, self._digests = number, base, digests

    def _save_changes(self, number: int, state: Mapping[str, Any], digests: Mapping[Path, bytes]) -> None:
        changed = {path for path, found in digests.items() if not found or found != self._digests[path]}
        difference = {"base": self._base, "changed": _select(state, changed)}
        self._directory.save_changes(number, packing(difference))

    def load(self, number: int) -> dict[str, Any] | None:
        """The state after round `number`; None, with a line in the log, when it is missing or torn.

        Tensors may share memory: who changes one in place copies it first. Those of optimizers are their own.
        Changes that are torn, or of another writing of the round, are as if they had not been made.

        Raises:
            StateError: the file is whole, and holds something else.
        """
        data = self._directory.load_round(number)
        if data is None:
            return None
        state = unpack_state(data)
        changes = self._directory.load_changes(number)
        if changes is not None:
            difference = unpack_state(changes)
            if difference.get("base") == hashlib.sha256(data).hexdigest():
                _merge(state, difference["changed"])
        return state


def _digests(state: Mapping[str, Any]) -> dict[Path, bytes]:
    """By path, SHA-256 of each tensor; b"" of what is no tensor. Tensors that share memory are read once."""
    known: dict[Memory, bytes] = {}
    found = {}
    for path, value in leaves(state):
        found[path] = b""
        if isinstance(value, Tensor):
            shared = memory_of(value)
            if shared not in known:
                known[shared] = _digest(value)
            found[path] = known[shared]
    return found


def _digest(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(flat.numpy().data)
    return digest.digest()


def _select(state: Mapping[Any, Any], wanted: set[Path], path: Path = ()) -> dict[Any, Any]:
    """The values of `state` at the paths `wanted`, nested as there."""
    found: dict[Any, Any] = {}
    for key, value in state.items():
        here = (*path, key)
        if isinstance(value, Mapping):
            if inner := _select(value, wanted, here):
                found[key] = inner
        elif here in wanted:
            found[key] = value
    return found


def _merge(state: dict[Any, Any], changed: Mapping[Any, Any]) -> None:
    """Put the values of `changed` into `state`. Raises StateError: there is no place for them."""
    for key, value in changed.items():
        if key not in state:
            raise StateError(f"a round's changes have {key!r}, which the round has not")
        if isinstance(value, Mapping):
            _merge(state[key], value)
        else:
            state[key] = value
