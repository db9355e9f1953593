"""A device's own choice in a run that it has already trained in."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace
from profiles import DESCRIPTION, SPEC, measured

from splitee.address import BrokerAddress
from splitee.durable import StateDirectory
from splitee.link_options import LinkOptions
from splitee_device.auto_cut import AutoCut
from splitee_device.measured_store import MeasuredStore

NOBODY = LinkOptions(BrokerAddress("127.0.0.1", 1), "fleet", 0.1, None)
AUTO = AutoCut(NOBODY, "pi-1", 320, 1, "deepest", 1.0)


def state_of(path: Path, **facts: object) -> StateDirectory:
    state = StateDirectory(path)
    state.save_facts({"run": SPEC.run, "cut": 2, "finished": False, **facts})
    return state


def nothing() -> None:
    pass


def test_a_run_under_way_keeps_its_cut_without_a_measurement(tmp_path: Path) -> None:
    assert AUTO.choose(SPEC, state_of(tmp_path), nothing, fresh=False) == (2, None)


def test_a_run_under_way_keeps_its_cut_and_tells_what_was_measured(tmp_path: Path) -> None:
    MeasuredStore(tmp_path).save(measured([1, 2, 3, 4]))
    cut, capability = AUTO.choose(SPEC, state_of(tmp_path), nothing, fresh=False)
    assert cut == 2
    assert capability is not None
    assert [cost.cut for cost in capability.cuts] == [1, 2, 3, 4]
    assert capability.upload is None  # nobody answered, and the device trains all the same


def test_another_run_or_a_fresh_start_chooses_anew(tmp_path: Path) -> None:
    MeasuredStore(tmp_path).save(measured([1, 2, 3, 4]))
    state = state_of(tmp_path)
    assert AUTO.choose(SPEC, state, nothing, fresh=True)[0] == 4
    assert AUTO.choose(replace(SPEC, run="another"), state, nothing, fresh=False)[0] == 4


def test_measurements_are_kept_by_what_they_depend_on(tmp_path: Path) -> None:
    store = MeasuredStore(tmp_path)
    store.save(measured([1, 4]))
    held = store.load(SPEC, 1)
    assert held is not None
    assert (held.description, list(held.costs)) == (DESCRIPTION, [1, 4])
    assert held.available is not None  # as it is now, not as it was
    assert store.load(SPEC, 2) is None
    assert store.load(replace(SPEC, batch_size=16), 1) is None
    assert store.load(replace(SPEC, run="another"), 1) is not None


def test_a_measurement_that_is_torn_or_had_failures_is_not_used(tmp_path: Path) -> None:
    store = MeasuredStore(tmp_path)
    store.save(replace(measured([1]), failed={2: "ran out of memory"}))
    assert store.load(SPEC, 1) is None
    store.save(measured([1]))
    (path,) = (tmp_path / "profile").glob("*.json")
    path.write_bytes(path.read_bytes()[:100])
    assert store.load(SPEC, 1) is None
