# SPDX-License-Identifier: Apache-2.0
"""What a training step and a fleet's round compute, on a network of known sizes."""

from __future__ import annotations

from msgspec.structs import replace
from tiny_runs import BATCH, tiny_run

from splitee.networks.split import build_for
from splitee.training.compute import fleet_round_macs, round_macs, step_macs

RUN = tiny_run(client_averaging="layerwise")
NETWORK = build_for(RUN, device="meta")
STAGES = [4 * 27 * 64, 8 * 36 * 9, 72 * 16, 16 * 10]  # outputs x inputs of each
EXITS = {1: 16 * 10, 2: 72 * 10}  # four quarters of each channel; flat features as they are
SAMPLES = 5 * BATCH + 1  # the incomplete batch is not trained


def test_step_counts_forward_and_two_gradients_of_trained_layers() -> None:
    assert step_macs(NETWORK) == 3 * sum(STAGES)
    assert step_macs(NETWORK, 1) == 3 * STAGES[0]
    assert step_macs(NETWORK, 2, [1, 2]) == 3 * (sum(STAGES[:2]) + EXITS[1] + EXITS[2])


def test_frozen_stages_count_their_forward_pass_only() -> None:
    frozen = build_for(replace(RUN, frozen=1), device="meta")
    assert step_macs(frozen, 2) == STAGES[0] + 3 * STAGES[1]


def test_round_counts_complete_batches_or_one_batch_of_all_samples() -> None:
    assert round_macs(NETWORK, RUN, SAMPLES, 1) == 5 * BATCH * 3 * STAGES[0]
    assert round_macs(NETWORK, RUN, 3) == 3 * 3 * sum(STAGES), "a batch of all that there is"


def test_device_of_a_fleet_also_trains_shared_exits_at_shallower_cuts() -> None:
    own = round_macs(NETWORK, RUN, SAMPLES, 2, [2])
    assert fleet_round_macs(NETWORK, RUN, SAMPLES, 2) == own
    shared = replace(RUN, exits="fleet", exit_cuts=(1, 2, 3))
    assert fleet_round_macs(NETWORK, shared, SAMPLES, 2) == own + 5 * BATCH * 3 * EXITS[1]
    assert fleet_round_macs(NETWORK, shared, SAMPLES, 1) == round_macs(NETWORK, RUN, SAMPLES, 1, [1])


def test_statistics_count_two_forward_passes_per_batch() -> None:
    forward = STAGES[0] + EXITS[1]
    for requested, taken in ((2, 2), (9, 5)):  # a round has no more than five
        run = replace(RUN, statistics_batches=requested)
        extra = fleet_round_macs(NETWORK, run, SAMPLES, 1) - fleet_round_macs(NETWORK, RUN, SAMPLES, 1)
        assert extra == 2 * taken * BATCH * forward
    alone = replace(RUN, statistics_batches=2, client_averaging="none")
    assert fleet_round_macs(NETWORK, alone, SAMPLES, 1) == fleet_round_macs(NETWORK, RUN, SAMPLES, 1)
