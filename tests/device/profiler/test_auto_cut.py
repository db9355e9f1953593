# SPDX-License-Identifier: Apache-2.0
"""A device's own choice of a cut, also in a run that it has already trained in."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from msgspec.structs import replace
from profiles import DESCRIPTION, SPEC, measured

from splitee.durable import StateDirectory
from splitee.errors import NoCutFits
from splitee.mqtt.address import BrokerAddress
from splitee.mqtt.options import LinkOptions
from splitee_device.profiler.auto_cut import RESERVE, AutoCut, ChosenCut
from splitee_device.profiler.cost_model import Work, predict
from splitee_device.profiler.store import MeasuredStore

UNREACHABLE = LinkOptions(BrokerAddress("127.0.0.1", 1), "fleet", 0.1, None)
AUTO = AutoCut(UNREACHABLE, "pi-1", 320, 1, "deepest", 1.0)


def state_of(path: Path, **facts: object) -> StateDirectory:
    state = StateDirectory(path)
    state.save_facts({"run": SPEC.run, "cut": 2, "finished": False, **facts})
    return state


def no_tick() -> None:
    pass


def test_run_under_way_keeps_its_cut_without_a_measurement(tmp_path: Path) -> None:
    assert AUTO.choose(SPEC, state_of(tmp_path), no_tick, fresh=False) == ChosenCut(2)


def test_run_under_way_keeps_its_cut_and_reports_measured_costs(tmp_path: Path) -> None:
    MeasuredStore(tmp_path).save(measured([1, 2, 3, 4]))
    chosen = AUTO.choose(SPEC, state_of(tmp_path), no_tick, fresh=False)
    capability = chosen.capability
    assert chosen.cut == 2
    assert capability is not None
    assert [cost.cut for cost in capability.cuts] == [1, 2, 3, 4]
    assert capability.upload is None  # the broker is unreachable, and the device trains all the same


def test_finished_run_that_gets_more_rounds_keeps_its_cut(tmp_path: Path) -> None:
    """The server refuses a device that comes back with another cut."""
    MeasuredStore(tmp_path).save(measured([1, 2, 3, 4]))
    assert AUTO.choose(SPEC, state_of(tmp_path, finished=True), no_tick, fresh=False).cut == 2


def test_cut_is_chosen_again_for_another_run_or_a_fresh_start(tmp_path: Path) -> None:
    MeasuredStore(tmp_path).save(measured([1, 2, 3, 4]))
    state = state_of(tmp_path)
    assert AUTO.choose(SPEC, state, no_tick, fresh=True).cut == 4
    assert AUTO.choose(replace(SPEC, run="another"), state, no_tick, fresh=False).cut == 4


def test_adaptive_device_begins_at_its_first_cut_and_resumes_at_the_saved_cut(tmp_path: Path) -> None:
    MeasuredStore(tmp_path).save(measured([1, 2, 3, 4]))
    adapts = dataclasses.replace(AUTO, first=3, adapts=True)
    state = state_of(tmp_path)
    assert adapts.choose(SPEC, state, no_tick, fresh=False).cut == 2
    begun = adapts.choose(SPEC, state, no_tick, fresh=True)
    assert begun.cut == 3
    assert begun.capability is not None
    assert begun.capability.reason == "as --cut says"
    assert begun.forecast is not None
    assert begun.forecast.choose().cut == 4


def test_cut_choice_is_bounded_by_the_given_memory(tmp_path: Path) -> None:
    MeasuredStore(tmp_path).save(measured([1, 2, 3, 4]))
    state = state_of(tmp_path)
    needed = [row.needed for row in predict(measured([1, 2, 3, 4]), Work(AUTO.samples, 10, 0))]
    bounded = dataclasses.replace(AUTO, memory=needed[2] + RESERVE)
    assert bounded.choose(SPEC, state, no_tick, fresh=True).cut == 3
    with pytest.raises(NoCutFits, match="are available"):
        dataclasses.replace(AUTO, memory=1 << 20).choose(SPEC, state, no_tick, fresh=True)


def test_measurements_are_shared_by_runs_but_not_batch_sizes_or_threads(tmp_path: Path) -> None:
    store = MeasuredStore(tmp_path)
    store.save(measured([1, 4]))
    held = store.load(SPEC, 1)
    assert held is not None
    assert (held.description, list(held.costs)) == (DESCRIPTION, [1, 4])
    assert held.available is not None  # as it is now, not as it was
    assert store.load(SPEC, 2) is None
    assert store.load(replace(SPEC, batch_size=16), 1) is None
    assert store.load(replace(SPEC, run="another"), 1) is not None


def test_measurement_that_is_torn_or_had_failures_is_not_used(tmp_path: Path) -> None:
    store = MeasuredStore(tmp_path)
    store.save(replace(measured([1]), failed={2: "ran out of memory"}))
    assert store.load(SPEC, 1) is None
    store.save(measured([1]))
    (path,) = (tmp_path / "profile").glob("*.json")
    path.write_bytes(path.read_bytes()[:100])
    assert store.load(SPEC, 1) is None
