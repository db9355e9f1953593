# SPDX-License-Identifier: Apache-2.0
"""The compute of training, in multiply-accumulates (MACs)."""

from __future__ import annotations

from collections.abc import Sequence

from splitee.networks.split import SplitNetwork
from splitee.protocol.run_spec import RunSpec
from splitee.training.batchnorm_statistics import STATISTICS_PASSES, statistics_steps
from splitee.training.epochs import steps_per_round
from splitee.training.weights import exit_cuts

PASSES = 3  # of a training step: forward, gradient to the weights, gradient to the input; the same MACs each


def step_macs(network: SplitNetwork, cut: int | None = None, exits: Sequence[int] = ()) -> int:
    """MACs per sample of a training step.

    A step counts as PASSES forward passes, in frozen stages as one. The optimizer is left out. The first
    layer counts in full, although it needs no gradient to the images.

    Args:
        cut: stages 1..cut are trained; None: the whole network.
        exits: the cuts whose exits are trained too.
    """
    stages = sum(
        stage.macs * (1 if stage.index <= network.frozen else PASSES) for stage in network.stages[:cut]
    )
    return stages + PASSES * _exit_macs(network, exits)


def round_macs(
    network: SplitNetwork, spec: RunSpec, samples: int, cut: int | None = None, exits: Sequence[int] = ()
) -> int:
    """MACs of a round of training steps on so many images, without a fleet; see `step_macs`."""
    return step_macs(network, cut, exits) * steps_per_round(spec, samples) * min(spec.batch_size, samples)


def fleet_round_macs(network: SplitNetwork, spec: RunSpec, samples: int, cut: int) -> int:
    """MACs of a device's round in the fleet, with every exit that it trains in the run, and statistics.

    For BatchNorm's statistics batches pass forward only. Evaluation is left out, here as in `round_macs`.
    """
    exits = exit_cuts(spec, cut)
    trained = round_macs(network, spec, samples, cut, exits)
    if not spec.takes_statistics:
        return trained
    forward = sum(stage.macs for stage in network.stages[:cut]) + _exit_macs(network, exits)
    return trained + forward * STATISTICS_PASSES * statistics_steps(spec, samples) * min(
        spec.batch_size, samples
    )


def _exit_macs(network: SplitNetwork, exits: Sequence[int]) -> int:
    return sum(map(network.exit_macs, exits))
