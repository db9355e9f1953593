# SPDX-License-Identifier: Apache-2.0
"""The states of released models on the devices of a fleet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from splitee.protocol.fields import ReleaseState
from splitee.protocol.inference import ServedModel


@dataclass(frozen=True)
class ModelInService:
    """The state of the last release on a device, and the model in service there.

    `run`, `round` and `since` belong to the release; a round of 0 and a `since` of None are not known.
    `serves`: the model in service now, if there is one; it belongs to another release if `state` is not
    "in service".
    """

    release: str  # SHA-256
    state: ReleaseState | Literal["offered"]
    reason: str = ""
    run: str = ""
    round: int = 0
    since: float | None = None  # seconds since the epoch, by the device's clock
    serves: ServedModel | None = None


@dataclass(frozen=True)
class ReleaseView:
    """How many devices have a model of one round of one run in one state; `round` 0: not known."""

    state: ReleaseState | Literal["offered"]
    run: str
    round: int
    devices: int


def releases_of(models: Iterable[ModelInService | None]) -> tuple[ReleaseView, ...]:
    """The numbers of devices by the state, run and round of their models, sorted."""
    counts = Counter((model.state, model.run, model.round) for model in models if model is not None)
    return tuple(ReleaseView(*key, devices=count) for key, count in sorted(counts.items()))
