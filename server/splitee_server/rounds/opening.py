# SPDX-License-Identifier: Apache-2.0
"""Opens a phase: which devices' batches this rank trains, in which order, and within which windows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from splitee.clock import Clock
from splitee.protocol.rounds import Participant, RoundOpen
from splitee.protocol.run_spec import RunSpec
from splitee_server.learning.fleet_model import FleetModel
from splitee_server.learning.lanes import in_order
from splitee_server.ranks.ranks import Ranks
from splitee_server.rounds.batch_order import Order
from splitee_server.rounds.phase import Phase
from splitee_server.rounds.policy import Policy
from splitee_server.rounds.waves import Waves
from splitee_server.rounds.windows import open_windows


def open_phase(
    opened: RoundOpen,
    participants: Mapping[str, Participant],
    spec: RunSpec,
    model: FleetModel,
    policy: Policy,
    ranks: Ranks,
    *,
    max_packet: int,
    clock: Clock,
    is_over: Callable[[], bool] | None = None,
) -> Phase:
    """A new phase as `opened` describes it.

    Args:
        ranks: the other ranks; the participants are divided among them, and they open the phase.
        max_packet: bytes of the largest payload that the broker takes.
        is_over: as in `Phase`.
    """
    trains = opened.phase == "train"
    in_waves = trains and policy.resident > 0
    served = in_order(participants) if in_waves else []
    order: Order = model.order if trains else "any"
    remote = ranks.assign_ranks(participants)
    own = {device: part for device, part in participants.items() if device not in remote}
    assembler = model.assembler if trains else model.statistics_assembler
    phase = Phase(
        opened,
        participants,
        order=order,
        window=spec.window,
        windows=open_windows(
            opened,
            own,
            spec,
            model.feature_shape,
            max_packet,
            policy.budget,
            order=order,
            served=served,
        ),
        num_classes=spec.num_classes,
        clock=clock,
        assemblers={device: assembler(part.cut) for device, part in participants.items() if part.weights},
        is_over=is_over,
        waves=Waves(served, policy.resident) if in_waves else None,
        remote=remote,
    )
    if participants:
        ranks.open(phase, spec, model)
    return phase
