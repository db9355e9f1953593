# SPDX-License-Identifier: Apache-2.0
"""A device's precision: given by its owner or chosen by measuring, and kept for the run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from msgspec.structs import replace

from splitee.cli import precision
from splitee.durable import StateDirectory
from splitee.errors import StateError
from splitee.protocol.run_spec import RunSpec
from splitee_device.data.images import DeviceData, open_data
from splitee_device.profiler.auto_precision import choose_precision, faster
from splitee_device.training.trainer import ClientTrainer, open_trainer

SPEC = RunSpec(protocol=1, run="run-a", network="tiny_networks:tiny", num_classes=10, rounds=1)


@pytest.fixture(scope="module")
def data() -> DeviceData:
    return open_data("builtin:fashion-mnist", input_shape=(3, 32, 32), limit=192)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDirectory]:
    directory = StateDirectory(tmp_path / "state")
    yield directory
    directory.close()


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cpuinfo of a CPU without bfloat16."""
    path = tmp_path / "cpuinfo"
    path.write_text("flags: avx2\n")
    monkeypatch.setattr(precision, "CPUINFO", path)
    return path


def no_trainer(_spec: RunSpec) -> ClientTrainer:
    raise AssertionError("it is not to measure")


@pytest.mark.parametrize(
    ("fp32", "bf16", "expected"), [(1.0, 0.8, "bf16"), (1.0, 0.95, "fp32"), (1.0, 2.0, "fp32")]
)
def test_bfloat16_is_chosen_only_if_clearly_faster(fp32: float, bf16: float, expected: str) -> None:
    assert faster({"fp32": fp32, "bf16": bf16}) == expected


@pytest.mark.usefixtures("cpuinfo")
def test_precision_is_fp32_unmeasured_on_a_cpu_without_bfloat16(
    state: StateDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "splitee_device.profiler.auto_precision"):
        assert choose_precision("auto", SPEC, state, no_trainer, fresh=False) == "fp32"
    assert caplog.messages == ["precision fp32: this CPU has no bfloat16"]


def test_measured_precision_is_kept_for_the_run(
    cpuinfo: Path, state: StateDirectory, data: DeviceData, caplog: pytest.LogCaptureFixture
) -> None:
    cpuinfo.write_text("flags: avx512_bf16\n")
    trainer_of = partial(open_trainer, cut=2, device="pi-1", data=data)
    with caplog.at_level(logging.INFO, "splitee_device.profiler.auto_precision"):
        chosen = choose_precision("auto", SPEC, state, trainer_of, fresh=False)
    (line,) = caplog.messages
    assert line.startswith(f"precision {chosen}: a training step takes fp32 ")
    assert choose_precision("auto", SPEC, state, no_trainer, fresh=False) == chosen
    for spec, fresh in ((replace(SPEC, run="run-b"), False), (SPEC, True)):
        with pytest.raises(AssertionError, match="not to measure"):
            choose_precision("auto", spec, state, no_trainer, fresh=fresh)


def test_run_does_not_change_its_precision(state: StateDirectory) -> None:
    assert choose_precision("bf16", SPEC, state, no_trainer, fresh=False) == "bf16"
    assert choose_precision("auto", SPEC, state, no_trainer, fresh=False) == "bf16"
    with pytest.raises(StateError, match="holds run run-a with --precision bf16: --precision bf16 goes"):
        choose_precision("fp32", SPEC, state, no_trainer, fresh=False)
    assert choose_precision("fp32", replace(SPEC, run="run-b"), state, no_trainer, fresh=False) == "fp32"
    assert choose_precision("bf16", SPEC, state, no_trainer, fresh=True) == "bf16"


@pytest.mark.parametrize("finished", [False, True])  # a finished run may get more rounds
def test_run_without_a_recorded_precision_is_float32(state: StateDirectory, *, finished: bool) -> None:
    state.save_facts({"run": "run-a", "finished": finished})
    with pytest.raises(StateError, match="with --precision fp32: "):
        choose_precision("bf16", SPEC, state, no_trainer, fresh=False)
    assert choose_precision("auto", SPEC, state, no_trainer, fresh=False) == "fp32"
