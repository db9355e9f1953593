# SPDX-License-Identifier: Apache-2.0
"""States of committed rounds: written whole once, then only changes; torn changes are ignored."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from splitee.durable import StateDirectory
from splitee.errors import StateError
from splitee.training.commit_files import CommitFiles
from splitee.training.state import fleet_digest, pack_state, unpack_state

LARGE = torch.arange(100_000, dtype=torch.float32)
MOMENTUM = LARGE + 1
COUNT = torch.tensor(7)


def state(mean: float = 0.0, seconds: float = 1.0) -> dict[str, Any]:
    statistics = torch.full((3,), mean)
    trunk = {"weight": LARGE, "running_mean": statistics, "count": COUNT}
    optimizer = {"state": {0: {"momentum": MOMENTUM}}, "groups": [{"lr": 1}]}
    return {
        "round": 5,
        "strategy": {"trunk": trunk, "optimizer": optimizer},
        "trunks": {"all": {"cut": 2, "weights": dict(trunk)}},
        "members": [{"device": "pi-1", "digest": f"{seconds}"}],
        "seconds": seconds,
        "soft_labels": {},
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[StateDirectory]:
    opened = StateDirectory(tmp_path / "server")
    yield opened
    opened.close()


def test_second_save_of_a_round_writes_a_small_file_of_changes(directory: StateDirectory) -> None:
    files, path = CommitFiles(directory), directory.path
    files.save(5, state())
    whole = (path / "round-000005.state").stat()
    files.save(5, state(mean=2.0, seconds=3.0))
    after = (path / "round-000005.state").stat()
    assert (after.st_ino, after.st_mtime_ns) == (whole.st_ino, whole.st_mtime_ns)
    assert 0 < (path / "round-000005.changes").stat().st_size < 10_000 < whole.st_size
    found = CommitFiles(directory).load(5)
    assert found is not None
    assert same(found, state(mean=2.0, seconds=3.0))
    shared = found["strategy"]["trunk"]["weight"], found["trunks"]["all"]["weights"]["weight"]
    assert shared[0].data_ptr() == shared[1].data_ptr()


def test_last_saved_changes_of_a_round_are_loaded(directory: StateDirectory) -> None:
    files = CommitFiles(directory)
    for mean in (0.0, 1.0, 0.0, 4.0):
        files.save(5, state(mean))
    assert same(CommitFiles(directory).load(5), state(4.0))
    files.save(5, state(0.0))
    assert same(CommitFiles(directory).load(5), state(0.0))


def test_tensors_written_in_place_are_saved_as_changes(directory: StateDirectory) -> None:
    layer = torch.nn.BatchNorm1d(4)
    other = torch.zeros(4)
    tensors = {**layer.state_dict(), "other": other}
    files = CommitFiles(directory)
    files.save(5, {"trunk": dict(tensors)})
    layer(torch.arange(8.0).reshape(2, 4))
    other[1:3].fill_(5.0)
    with torch.no_grad():
        layer.weight[:2] = 2.0
    files.save(5, {"trunk": {**layer.state_dict(), "other": other}})
    found = CommitFiles(directory).load(5)
    assert found is not None
    assert (directory.path / "round-000005.changes").exists()
    assert same(found["trunk"], {**layer.state_dict(), "other": other})
    assert found["trunk"]["running_mean"].any()


def test_new_tensor_that_replaces_a_deleted_one_is_saved_as_a_change(directory: StateDirectory) -> None:
    files, held = CommitFiles(directory), {"x": torch.zeros(1000)}
    files.save(5, {"clients": dict(held)})
    for value in range(1, 20):
        del held["x"]
        held["x"] = torch.full((1000,), float(value))
        files.save(5, {"clients": dict(held)})
        found = CommitFiles(directory).load(5)
        assert found is not None
        assert same(found["clients"], held)


def test_torn_changes_are_ignored_with_one_line(
    directory: StateDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    files = CommitFiles(directory)
    files.save(5, state())
    files.save(5, state(mean=2.0))
    os.truncate(directory.path / "round-000005.changes", 100)
    assert same(CommitFiles(directory).load(5), state())
    assert [record.getMessage().rpartition("/")[2] for record in caplog.records] == [
        "round-000005.changes is torn; it is ignored"
    ]


def test_changes_of_an_earlier_write_of_the_round_are_ignored(directory: StateDirectory) -> None:
    """As after a power cut that lost the round, but not its changes."""
    files, changes = CommitFiles(directory), directory.path / "round-000005.changes"
    files.save(5, state())
    files.save(5, state(mean=2.0))
    stale = changes.read_bytes()
    CommitFiles(directory).save(5, state(mean=1.0, seconds=9.0))
    assert not changes.exists()
    changes.write_bytes(stale)
    assert same(CommitFiles(directory).load(5), state(mean=1.0, seconds=9.0))


def test_state_of_another_structure_is_written_whole(directory: StateDirectory) -> None:
    files = CommitFiles(directory)
    files.save(5, state())
    more = {**state(), "soft_labels": {"pi-1": torch.ones(3)}}
    files.save(5, more)
    assert not (directory.path / "round-000005.changes").exists()
    assert same(CommitFiles(directory).load(5), more)


def test_pruning_a_round_removes_its_changes(directory: StateDirectory) -> None:
    files = CommitFiles(directory)
    for number in (5, 6, 7):
        files.save(number, state())
        files.save(number, state(mean=2.0))
        directory.prune(number)
    assert sorted(file.name for file in directory.path.glob("round-*")) == [
        "round-000006.changes", "round-000006.state", "round-000007.changes", "round-000007.state",
    ]  # fmt: skip


def test_round_without_a_file_of_changes_is_loaded(directory: StateDirectory) -> None:
    directory.save_round(5, pack_state(state()))
    assert same(CommitFiles(directory).load(5), state())
    assert CommitFiles(directory).load(4) is None


def test_changes_with_an_unknown_key_are_refused(directory: StateDirectory) -> None:
    files = CommitFiles(directory)
    files.save(5, state())
    files.save(5, state(mean=2.0))
    data = directory.load_changes(5)
    assert data is not None
    found = unpack_state(data)
    found["changed"]["stranger"] = 1
    directory.save_changes(5, pack_state(found))
    with pytest.raises(StateError, match="'stranger', which the round has not"):
        CommitFiles(directory).load(5)


def trunk_of(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {"stage.weight": torch.full((50_000,), value), "stage.bias": torch.zeros(50)}


def test_equal_trunks_are_written_once_and_share_memory_when_loaded(
    directory: StateDirectory,
) -> None:
    one = {"round": 1, "trunks": {"pi-0": trunk_of()}}
    many = {"round": 2, "trunks": {f"pi-{number}": trunk_of() for number in range(50)}}
    many["trunks"]["pi-50"] = trunk_of(2.0)
    for state_of in (one, many):
        CommitFiles(directory).save(state_of["round"], state_of)
    sizes = [(directory.path / f"round-00000{number}.state").stat().st_size for number in (1, 2)]
    assert sizes[1] < 2.2 * sizes[0]
    found = CommitFiles(directory).load(2)
    assert found is not None
    assert same(found, many)
    weights = {tensors["stage.weight"].data_ptr() for tensors in found["trunks"].values()}
    assert len(weights) == 2


def test_tensors_that_differ_in_the_sign_of_zero_are_stored_separately(directory: StateDirectory) -> None:
    signs = {"a": {"x": torch.tensor([0.0])}, "b": {"x": torch.tensor([-0.0])}}
    CommitFiles(directory).save(1, signs)
    found = CommitFiles(directory).load(1)
    assert found is not None
    assert [found[device]["x"].signbit().item() for device in "ab"] == [False, True]


def test_loaded_tensors_of_an_optimizer_share_no_memory(directory: StateDirectory) -> None:
    parameters = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones(3)
    optimizer.step()
    CommitFiles(directory).save(1, {"optimizer": optimizer.state_dict()})
    found = CommitFiles(directory).load(1)
    assert found is not None
    tensors = [tensor for state in found["optimizer"]["state"].values() for tensor in state.values()]
    assert len({tensor.data_ptr() for tensor in tensors}) == len(tensors) == 6


def test_fleet_digest_depends_on_values_and_not_on_shared_memory() -> None:
    shared = trunk_of()["stage.weight"]
    trunks = {"pi-1/stage.weight": shared, "pi-2/stage.weight": shared.clone()}
    clients = {"pi-1": "0a", "pi-2": "1b"}
    digest = fleet_digest(trunks, clients)
    assert digest == fleet_digest(dict.fromkeys(trunks, shared), clients)
    assert digest != fleet_digest({**trunks, "pi-2/stage.weight": shared + 1}, clients)
    assert digest != fleet_digest(trunks, {"pi-1": "1b", "pi-2": "0a"})
