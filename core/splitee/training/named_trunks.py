# SPDX-License-Identifier: Apache-2.0
"""The trunks of a commit by name, so that export and serving do not need the strategy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class NamedTrunk:
    """Stages cut+1..L: `weights` has their tensors by the network's names, and may have others."""

    cut: int
    weights: Mapping[str, Tensor]


@dataclass(frozen=True)
class NamedTrunks:
    """All trunks of a fleet; `trunk_of` names, by device, the one that continues its client network."""

    trunks: Mapping[str, NamedTrunk]
    trunk_of: Mapping[str, str]

    @property
    def cuts(self) -> dict[str, int]:
        """The cuts by device."""
        return {device: self.trunks[name].cut for device, name in self.trunk_of.items()}

    def state(self) -> dict[str, Any]:
        """The fields of a commit that `read` takes; tensors are shared, not copied."""
        return {
            "trunks": {name: dict(vars(trunk)) for name, trunk in self.trunks.items()},
            "trunk_of": dict(self.trunk_of),
        }

    @classmethod
    def read(cls, committed: Mapping[str, Any]) -> NamedTrunks:
        """Reads the trunks of a commit, from its fields. Raises KeyError or TypeError: it is not a commit."""
        if not committed.get("trunks"):
            return _of_strategy(committed["strategy"])
        trunks = {name: NamedTrunk(**trunk) for name, trunk in committed["trunks"].items()}
        return cls(trunks, committed["trunk_of"])


def _of_strategy(state: Mapping[str, Any]) -> NamedTrunks:
    """The trunks of a commit without names: its strategy has one `trunk`, or `trunks` by device."""
    cuts: dict[str, int] = state["cuts"]
    if "trunk" in state:
        shared = {f"cut-{cut}": NamedTrunk(cut, state["trunk"]) for cut in cuts.values()}
        return NamedTrunks(shared, {device: f"cut-{cut}" for device, cut in cuts.items()})
    own = {device: NamedTrunk(cut, state["trunks"][device]) for device, cut in cuts.items()}
    return NamedTrunks(own, {device: device for device in cuts})
