# SPDX-License-Identifier: Apache-2.0
"""The parts of benchmarks.race, without Flower: its figures, the job that it hands on, its training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks.flower_app.race_app.job import Job as FlowersJob
from benchmarks.flower_app.race_app.training import accuracy, train_round
from benchmarks.race import main
from benchmarks.racing.job import Job, write
from benchmarks.racing.outcome import Outcome, Round, bounds, ended
from click.testing import CliRunner

from splitee.networks.split import build_for
from splitee_device.data.images import Shard, open_data
from splitee_lab.demo.fleet import DATA, SMALL
from splitee_lab.methods.baselines import WholeTrainer, evaluate

TARGET = 0.8


def rounds(*figures: tuple[float, float, float]) -> tuple[Round, ...]:
    """Of (seconds, accuracy, CPU seconds of the devices)."""
    return tuple(
        Round(number, seconds, accuracy, {"pi-1": cpu / 4, "pi-2": 3 * cpu / 4}, 100 * number, 5.0)
        for number, (seconds, accuracy, cpu) in enumerate(figures, start=1)
    )


def outcome(*figures: tuple[float, float, float]) -> Outcome:
    return Outcome("method", TARGET, rounds(*figures), "target")


def test_record_has_the_first_round_that_reaches_the_target() -> None:
    record = outcome((10, 0.7, 4), (20, 0.8, 8), (30, 0.9, 12), (40, 0.7, 16)).record()
    assert record["reached"]
    assert (record["round"], record["seconds"], record["device_cpu_seconds"]) == (2, 20, 8)
    assert record["bytes_sent_by_devices"] == 200


def test_record_has_the_last_round_if_the_target_is_not_reached() -> None:
    record = outcome((10, 0.5, 4), (20, 0.79, 8), (30, 0.6, 12)).record()
    assert not record["reached"]
    assert (record["round"], record["accuracy"], record["seconds"]) == (3, 0.6, 30)
    assert Outcome("method", TARGET, (), "limit").record()["round"] is None


@pytest.mark.parametrize(
    ("theirs", "met"),
    [((90, 0.8, 20), [True, True]), ((89, 0.8, 20), [False, True]), ((90, 0.8, 19.9), [True, False])],
)
def test_bounds_on_time_and_device_cpu_are_judged_separately(
    theirs: tuple[float, float, float], met: list[bool]
) -> None:
    judged = bounds(outcome((30, 0.8, 9)), outcome((10, 0.2, 2), theirs))
    assert [bound.met for bound in judged] == met


def test_rival_that_misses_the_target_is_compared_by_its_last_round() -> None:
    judged = bounds(outcome((30, 0.8, 9)), outcome((50, 0.7, 20), (100, 0.79, 40)))
    assert [bound.figure for bound in judged] == [pytest.approx(100 / 30), pytest.approx(9 / 40)]


def test_bounds_are_missed_without_the_target_or_without_rival_rounds() -> None:
    judged = bounds(outcome((30, 0.79, 9)), outcome((300, 0.9, 90)))
    assert not any(bound.met for bound in judged)
    assert not any(bound.met for bound in bounds(outcome((30, 0.8, 9)), outcome()))


def test_method_ends_at_the_target_or_after_its_rounds() -> None:
    figures = rounds((10, 0.7, 4), (20, 0.8, 8))
    assert ended((), TARGET, 2) is None
    assert ended(figures[:1], TARGET, 2) is None
    assert ended(figures, TARGET, 5) == "target"
    assert ended(figures, 0.9, 2) == "rounds"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--methods", "splitee,fedsgd"), "'fedsgd': expected some of splitee, fedavg, fedprox"),
        (("--target", "1.2"), "1.2 is not in the range"),
        (("--samples", "8"), "8 is not in the range"),
        (("--out", "tests"), "tests is not empty"),
    ],
)
def test_race_command_refuses_invalid_arguments(arguments: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.slow(6)
def test_flower_client_trains_to_the_same_weights_as_the_whole_trainer(tmp_path: Path) -> None:
    job = Job(rounds=2, samples=96, seed=1)
    write(job, tmp_path / "job")
    theirs = FlowersJob(tmp_path / "job")
    initial = {name: torch.from_numpy(array) for name, array in theirs.arrays("initial").items()}
    network = theirs.network(initial)
    data = open_data(DATA, input_shape=SMALL, shard=Shard(2, 3), seed=1, limit=96)
    trainer = WholeTrainer(build_for(job.spec), job.spec, "pi-2", data.train)
    for number in (1, 2):
        trainer.forget_momentum()
        assert len(list(trainer.round(number))) == 3
        assert train_round(network, theirs, "pi-2", number) == 96
    for name, tensor in trainer.network.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name
    ours = evaluate(trainer.network, data.held_out, job.spec)
    assert accuracy(theirs, network, theirs.arrays("held-out")) == ours


@pytest.mark.slow(6)
def test_fedprox_keeps_a_client_nearer_to_its_initial_weights(tmp_path: Path) -> None:
    write(Job(rounds=1, samples=96, seed=1), tmp_path / "job")
    job = FlowersJob(tmp_path / "job")

    def moved(proximal_mu: float) -> float:
        initial = {name: torch.from_numpy(array) for name, array in job.arrays("initial").items()}
        before = initial["layer4.1.conv2.weight"].clone()
        network = job.network(initial)
        train_round(network, job, "pi-1", 1, proximal_mu)
        return float((network.state_dict()["layer4.1.conv2.weight"] - before).norm())

    assert moved(100.0) < 0.8 * moved(0.0)
