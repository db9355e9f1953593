# SPDX-License-Identifier: Apache-2.0
"""What a device begins a run from: settings that the server settles, and weights that it sends."""

from __future__ import annotations

import copy
import logging
from typing import Any

from msgspec.structs import replace

from splitee.protocol.rounds import Assignment
from splitee.protocol.run_spec import RunSpec
from splitee_device.agent.session import Session
from splitee_device.training.trainer import ClientTrainer

log = logging.getLogger(__name__)

SETTLED = ("frozen", "mean", "std", "exit_cuts", "settled")  # fields of RunSpec


def settled(session: Session, spec: RunSpec) -> RunSpec:
    """Wait for what the server settles by the fleet before the first round."""
    heard = session.heard
    session.wait(
        lambda: heard.spec is not None and not heard.spec.awaits_fleet, "the server to settle the run"
    )
    assert heard.spec is not None
    return replace(spec, **{name: getattr(heard.spec, name) for name in SETTLED})


class FirstState:
    """The state of a trainer before the first round, kept for as long as the run takes.

    Attributes:
        is_known: it is here; else the server sends its weights.
    """

    def __init__(self, trainer: ClientTrainer, spec: RunSpec) -> None:
        """`trainer`: with the weights that the run's seed gives."""
        self._state = copy.deepcopy(trainer.state())
        self.is_known = not spec.weights

    def get(self, session: Session, trainer: ClientTrainer, assignment: Assignment) -> dict[str, Any]:
        """The state; `trainer` gets its weights, where they must be fetched first."""
        if not self.is_known and assignment.first is not None:
            log.info("fetching the weights that the run begins from")
            trainer.adopt(session.requests.fetch_first_weights(trainer.weights(), assignment))
            self._state = copy.deepcopy(trainer.state())
            self.is_known = True
        return self._state
