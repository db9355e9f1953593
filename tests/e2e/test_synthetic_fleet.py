# SPDX-License-Identifier: Apache-2.0
"""Synthetic devices train a run with a real server, also where some of them vanish in each round."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from benchmarks.fleet import Work, failures, measure
from benchmarks.synthetic.measured_server import SECTIONS
from once import made_once

ROUNDS = 3


def run(directory: Path, averaging: str, *, kill: int) -> dict[str, Any]:
    work = Work(
        strategy="averaging",
        averaging=averaging,
        rounds=ROUNDS,
        steps=4,
        batch=8,
        held_out=64,
        kill=kill,
        slow_trunk=False,
        patience=60,
    )
    return measure(directory, 4, work)


@pytest.fixture
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """`undisturbed(averaging)`: the measurements of a run whose devices do not vanish."""

    def found(averaging: str) -> dict[str, Any]:
        def make(folder: Path) -> None:
            (folder / "found.json").write_text(json.dumps(run(folder / "run", averaging, kill=0)))

        made = made_once(tmp_path_factory, f"left-alone-{averaging}", make)
        result: dict[str, Any] = json.loads((made / "found.json").read_text())
        return result

    return found


@pytest.mark.slow(10)
@pytest.mark.mosquitto
@pytest.mark.parametrize("averaging", ["none", "layerwise"])
def test_devices_that_vanish_and_return_leave_the_weights_unchanged(
    tmp_path: Path, undisturbed: Callable[[str], dict[str, Any]], averaging: str
) -> None:
    alone, killed = undisturbed(averaging), run(tmp_path / "killed", averaging, kill=2)
    assert (alone["killed"], killed["killed"]) == (0, 2 * ROUNDS)
    assert alone["weights_sha256"] == killed["weights_sha256"]
    assert failures([alone]) == failures([killed]) == []


@pytest.mark.slow(5)
@pytest.mark.mosquitto
def test_cpu_time_of_the_server_is_split_by_section(undisturbed: Callable[[str], dict[str, Any]]) -> None:
    found = undisturbed("none")
    parts = found["server_ms_by_section"]
    assert parts.keys() == {*SECTIONS, "receive", "rest"}
    assert all(value > 0 for name, value in parts.items())
    assert sum(parts.values()) == pytest.approx(found["server_ms"], abs=0.01)
    assert found["batches_a_round"] == 4 * (4 + 1)
    assert found["broker_ms"] > 0


def result(devices: int, **changed: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {"wedged": False, "dropped_events": 0, "server_ms": 1.0, "times_bare": 2.0}
    usual |= {"commit_bytes": 1024 * devices}
    return {**usual, "devices": devices, "server_peak_mb": 600 + devices / 8, **changed}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"server_ms": 1.16}, "grows 1.16 times"),
        ({"times_bare": 2.4}, "2.4 times the bare step"),
        ({"server_peak_mb": 1000.0}, "KB a further device"),
        ({"dropped_events": 1}, "1 events were dropped"),
        ({"wedged": True, "waits_for": "pi-1"}, "nothing moves any more: pi-1"),
    ],
)
def test_failures_of_a_scaling_curve_are_reported(changed: dict[str, Any], words: str) -> None:
    few, many, more = result(10, server_ms=0.5), result(100), result(1000)
    assert failures([few, many, more]) == []
    assert words in " ".join(failures([few, many, more | changed]))
