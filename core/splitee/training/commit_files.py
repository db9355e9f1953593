# SPDX-License-Identifier: Apache-2.0
"""A server's committed rounds on disk: one file per state, and one beside it for later changes.

Tensors that are equal, as all trunks are after an average, are written once, and share memory when they are
read. So a commit of a thousand devices is little more than one network. BatchNorm's statistics are computed
again after a commit, and change a few of its tensors. Only these are written, because writing wears flash
memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from splitee.durable import StateDirectory
from splitee.errors import StateError
from splitee.training.batchnorm_statistics import is_statistic
from splitee.training.sharing import Path, leaves, memory_of, share_equal
from splitee.training.state import state_writer, unpack_state


class CommitFiles:
    """States of rounds, nested mappings of tensors and plain values, in a state directory."""

    def __init__(self, directory: StateDirectory) -> None:
        self._directory = directory
        self._number = 0  # the round of `_base` and `_written`
        self._base = ""  # SHA-256 of its whole state, as it was written
        self._written: dict[Path, _Written | None] = {}  # None: a plain value

    def save(self, number: int, state: Mapping[str, Any], *, changes_follow: bool = True) -> None:
        """Save the state after round `number` durably.

        If this object has saved the same round last, with `changes_follow`, only what has changed is written:
        plain values, and tensors that are new or were written to. In between no optimizer may step, because
        torch does not count the writes of a fused step.

        Args:
            changes_follow: it is likely to be saved again. Until then its tensors are kept in memory.
        """
        state = share_equal(state)
        values = dict(leaves(state))
        is_change = number == self._number and values.keys() == self._written.keys()
        base, written = self._base, self._written
        self._number, self._written = 0, {}  # until it is written
        if is_change:
            changed = {path for path, value in values.items() if _differs(path, value, written[path])}
            difference = {"base": base, "changed": _select(state, changed)}
            self._directory.save_changes(number, state_writer(difference))
            return
        self._base = self._directory.save_round(number, state_writer(state))
        if changes_follow:
            self._number = number
            self._written = {
                path: _Written(value) if isinstance(value, Tensor) else None for path, value in values.items()
            }

    def load(self, number: int) -> dict[str, Any] | None:
        """The state after round `number`; None, with a line in the log, when it is missing or torn.

        Tensors may share memory: copy one before you change it in place. Those of optimizers are not shared.
        Changes that are torn, or belong to another version of the round, are ignored.

        Raises:
            StateError: the file is whole, but has other content.
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


class _Written:
    """A tensor as it was written. It is kept, so that its memory cannot become another tensor's."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._version = tensor._version  # torch counts writes in place

    def is_unchanged(self, tensor: Tensor) -> bool:
        """Whether another tensor is the same one, unchanged since."""
        return memory_of(tensor) == memory_of(self._tensor) and tensor._version == self._version


def _differs(path: Path, value: Any, written: _Written | None) -> bool:
    """Whether a value must be written. Torch does not count BatchNorm's writes to running statistics."""
    if written is None or not isinstance(value, Tensor):
        return True
    return is_statistic(str(path[-1])) or not written.is_unchanged(value)


def _select(state: Mapping[Any, Any], wanted: set[Path], path: Path = ()) -> dict[Any, Any]:
    """The values of `state` at the paths `wanted`, nested as in `state`."""
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
