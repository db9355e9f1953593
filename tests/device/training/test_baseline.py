# SPDX-License-Identifier: Apache-2.0
"""The baseline that a device trains alone: with the fleet's trainer and seeds, once for each run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from splitee.networks.split import build_for
from splitee.protocol.run_spec import RunSpec
from splitee_device.data.images import DeviceData, open_data
from splitee_device.training.baseline import BASELINE, alone_accuracy
from splitee_device.training.trainer import ClientTrainer

SPEC = RunSpec(protocol=1, run="run-a", network="tiny_networks:tiny", num_classes=10, rounds=2, seed=1)
CUT = 2


@pytest.fixture(scope="module")
def data() -> DeviceData:
    return open_data("builtin:fashion-mnist", input_shape=(3, 32, 32), limit=64)


TrainerAt = Callable[[RunSpec, int], ClientTrainer]


def trainer_for(data: DeviceData) -> TrainerAt:
    return lambda spec, cut: ClientTrainer(build_for(spec), cut, spec, "pi-1", data)


def no_trainer(_spec: RunSpec, _cut: int) -> ClientTrainer:
    raise AssertionError("it is trained again")


def test_baseline_is_the_accuracy_of_the_rounds_trained_alone(data: DeviceData, tmp_path: Path) -> None:
    trainer = trainer_for(data)(SPEC, CUT)
    for number in (1, 2):
        for _ in trainer.round(number):
            pass
    right = [batch.exit_labels == batch.labels for batch in trainer.evaluate()]
    steps: list[tuple[int, int]] = []
    found = alone_accuracy(
        SPEC,
        CUT,
        trainer_for(data),
        tmp_path,
        lambda number, step, _of, _loss: steps.append((number, step)),
    )
    assert found == np.concatenate(right).mean()
    evaluated = [(2, 2)] * len(right)  # a small device takes minutes for it, and must feed its watchdog
    assert steps == [(1, 1), (1, 2), (2, 1), (2, 2), *evaluated]
    late = replace(SPEC, run="late", exits="fleet", exit_cuts=(1, CUT))
    assert alone_accuracy(late, CUT, trainer_for(data), tmp_path, lambda *_: None) == found, "no other's exit"


def test_baseline_is_kept_unless_run_or_rounds_change_or_its_file_is_damaged(
    data: DeviceData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def accuracy(spec: RunSpec, trainer_at: TrainerAt) -> float | None:
        return alone_accuracy(spec, CUT, trainer_at, tmp_path, lambda *_: None)

    first = accuracy(SPEC, trainer_for(data))
    assert accuracy(SPEC, no_trainer) == first
    for other in (replace(SPEC, rounds=3), replace(SPEC, run="run-b")):
        with pytest.raises(AssertionError, match="trained again"):
            accuracy(other, no_trainer)
    (tmp_path / BASELINE).write_text('{"run": "run-a", "rounds": 2, "cut": 2, "accuracy": 7}')
    with pytest.raises(AssertionError, match="trained again"):
        accuracy(SPEC, no_trainer)
    assert "baseline.json is unreadable" in caplog.text
