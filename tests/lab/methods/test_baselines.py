# SPDX-License-Identifier: Apache-2.0
"""The baselines: the same network, images and schedule as the fleet's, in processes of their own."""

from __future__ import annotations

import itertools
import multiprocessing

import pytest
from msgspec.structs import replace

from splitee.errors import ChildFailed
from splitee.protocol.run_spec import RunSpec
from splitee_device.data.images import Shard, open_data
from splitee_lab.methods.alone_exit import alone_exit
from splitee_lab.methods.baselines import (
    ALONE,
    ALONE_EXIT,
    CENTRALIZED,
    Baseline,
    DataSource,
    Progress,
    baselines_of,
    train,
    train_all,
)
from splitee_lab.methods.experiment import Experiment
from splitee_lab.methods.simulation import SimulatedDevice

RUN = RunSpec(
    protocol=1,
    run="r1",
    network="tiny_networks:tiny",
    num_classes=10,
    rounds=2,
    seed=1,
    batch_size=16,
    mean=(0.5,),
)
DATA = DataSource("builtin:fashion-mnist", limit=32)
SHARDS = {"pi-1": "1/2", "pi-2": "2/2"}
CUTS = {"pi-1": 1, "pi-2": 3}


def test_baselines_have_their_shards_and_the_longest_come_first() -> None:
    wanted = baselines_of(RUN, DATA, SHARDS, CUTS)
    assert wanted == [
        Baseline(CENTRALIZED, CENTRALIZED, RUN, DATA, ("1/2", "2/2")),
        Baseline(ALONE, "pi-1", RUN, DATA, ("1/2",)),
        Baseline(ALONE, "pi-2", RUN, DATA, ("2/2",)),
        Baseline(ALONE_EXIT, "pi-2", RUN, DATA, ("2/2",), 3),
        Baseline(ALONE_EXIT, "pi-1", RUN, DATA, ("1/2",), 1),
    ]
    names = ["centralized", "pi-1 alone", "pi-2 alone", "pi-2 alone-exit", "pi-1 alone-exit"]
    assert [baseline.name for baseline in wanted] == names


def test_baselines_pass_over_the_images_as_often_as_the_fleet() -> None:
    centralized, alone, _, alone_exit, _ = baselines_of(RUN, DATA, SHARDS, CUTS)
    assert last(centralized).steps == 2 * (2 * 32 // 16)
    assert last(alone).steps == last(alone_exit).steps == 2 * (32 // 16)


@pytest.mark.parametrize("exit_cuts", [(), (1, 3)])
def test_alone_exit_agrees_with_simulate_whatever_exits_the_fleet_shares(
    exit_cuts: tuple[int, ...],
) -> None:
    run = replace(RUN, exits="fleet" if exit_cuts else "own", exit_cuts=exit_cuts)
    shards = {device: Shard.parse(shard) for device, shard in SHARDS.items()}
    devices = {
        device: SimulatedDevice(
            CUTS[device],
            open_data(DATA.spec, input_shape=RUN.input_shape, shard=shard, seed=RUN.seed, limit=DATA.limit),
        )
        for device, shard in shards.items()
    }
    *_, simulated = alone_exit(Experiment(run, devices))
    found = {
        baseline.device: last(baseline).accuracy
        for baseline in baselines_of(run, DATA, SHARDS, CUTS)
        if baseline.kind == ALONE_EXIT
    }
    assert found == {device: one.exit_accuracy for device, one in simulated.accuracies.items()}
    assert found == {
        baseline.device: last(baseline).accuracy for baseline in baselines_of(RUN, DATA, SHARDS, CUTS)[3:]
    }


def last(baseline: Baseline) -> Progress:
    *_, final = train(baseline)
    assert final.step == final.steps
    return final


@pytest.mark.slow
def test_processes_give_the_same_accuracies_as_training_in_this_process() -> None:
    wanted = baselines_of(RUN, DATA, SHARDS, CUTS)
    here = {baseline: last(baseline).accuracy for baseline in wanted}
    shown: list[Progress] = []
    assert train_all(wanted, 2, shown.append) == here
    for name, course in itertools.groupby(sorted(shown, key=lambda at: at.name), lambda at: at.name):
        steps = [progress.step for progress in course]
        assert steps == sorted(steps), name
    assert multiprocessing.active_children() == []


def test_seed_decides_the_result_of_a_baseline() -> None:
    baseline = baselines_of(RUN, DATA, SHARDS, CUTS)[1]
    assert last(baseline) == last(baseline)
    other = RunSpec(
        protocol=1, run="r1", network="tiny_networks:tiny", num_classes=10, rounds=2, seed=2, batch_size=16
    )
    assert last(baselines_of(other, DATA, SHARDS, CUTS)[1]).loss != last(baseline).loss


@pytest.mark.slow
def test_centralized_baseline_learns() -> None:
    run = RunSpec(protocol=1, run="r1", network="tiny_networks:tiny", num_classes=10, rounds=8, seed=1)
    images = DataSource("builtin:fashion-mnist", limit=600)
    accuracy = last(Baseline(CENTRALIZED, CENTRALIZED, run, images, ("1/1",))).accuracy
    assert accuracy is not None
    assert accuracy > 0.4  # 0.1 is chance


def test_failed_baseline_is_reported_and_leaves_no_process() -> None:
    broken = Baseline(ALONE, "pi-1", RUN, DataSource("builtin:nothing"), ("1/1",))
    with pytest.raises(
        ChildFailed, match=r"baseline 'pi-1 alone' failed, .*: unknown data set builtin:nothing"
    ):
        train_all([broken], 1, lambda progress: None)
    assert multiprocessing.active_children() == []
