# SPDX-License-Identifier: Apache-2.0
"""The state in which a device begins a run: settings and weights that the server may decide."""

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

SETTLED_FIELDS = ("frozen", "mean", "std", "exit_cuts", "settled")  # fields of RunSpec


def settled_spec(session: Session, spec: RunSpec) -> RunSpec:
    """Wait for the settings that the server derives from the fleet before the first round."""
    last_received = session.last_received
    session.wait(
        lambda: last_received.spec is not None and not last_received.spec.awaits_fleet,
        "the server to settle the run",
    )
    assert last_received.spec is not None
    return replace(spec, **{name: getattr(last_received.spec, name) for name in SETTLED_FIELDS})


class InitialState:
    """The state of a trainer before the first round, kept for the whole run.

    Attributes:
        is_known: the state is here; otherwise the server sends its weights.
    """

    def __init__(self, trainer: ClientTrainer, spec: RunSpec) -> None:
        """`trainer` has the weights that the run's seed gives."""
        self._state = copy.deepcopy(trainer.state())
        self.is_known = not spec.weights

    def get(self, session: Session, trainer: ClientTrainer, assignment: Assignment) -> dict[str, Any]:
        """The state. If its weights must be fetched first, `trainer` gets them."""
        if not self.is_known and assignment.first is not None:
            log.info("fetching the weights that the run begins from")
            trainer.adopt(session.requests.fetch_initial_weights(trainer.weights(), assignment))
            self._state = copy.deepcopy(trainer.state())
            self.is_known = True
        return self._state
