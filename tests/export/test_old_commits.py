# SPDX-License-Identifier: Apache-2.0
"""Commits from before trunks had names: trunks are exported, served and trained from their state."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace as replace_struct
from torch import Tensor
from trained import CUTS, NETWORK, Trained

from splitee.durable import StateDirectory
from splitee.errors import StateError
from splitee.inference.manifest import TrunkManifest, read_manifest
from splitee.networks.split import build_for
from splitee.training.named_trunks import NamedTrunks
from splitee.training.state import pack_state, unpack_state
from splitee_export.models import export_trunks
from splitee_export.states import ServerState, read_state
from splitee_server.learning.fleet_model import FleetModel
from splitee_server.offload.trunks import CommittedTrunks
from splitee_server.rounds.checkpoints import Checkpoints, Committed

pytestmark = pytest.mark.slow(5)


@pytest.fixture(params=["trained", "averaged"])
def run(request: pytest.FixtureRequest) -> Trained:
    """A finished run of each strategy."""
    run: Trained = request.getfixturevalue(request.param)
    return run


def commit(path: Path) -> Committed:
    directory = StateDirectory(path)
    found = Checkpoints(directory).load()
    directory.close()
    assert found is not None
    return found


def unnamed(committed: Committed) -> dict[str, Any]:
    """The commit's fields but for its trunks by name."""
    return {name: value for name, value in vars(committed).items() if name not in ("trunks", "trunk_of")}


def old(committed: Committed) -> dict[str, Any]:
    """The fields that a commit had; Averaging's had the whole trunk of each device."""
    state = unnamed(committed)
    if "counters" in committed.strategy:
        strategy = {**committed.strategy}
        counters = strategy.pop("counters")
        strategy["trunks"] = {
            device: committed.trunks[name]["weights"]
            | {counter: torch.tensor(count) for counter, count in counters[device].items()}
            for device, name in committed.trunk_of.items()
        }
        state["strategy"] = strategy
    return unpack_state(pack_state(state))


@pytest.fixture
def old_state(run: Trained, tmp_path: Path) -> Path:
    """The server's state as it was written before trunks had names."""
    path = tmp_path / "old"
    directory = StateDirectory(path)
    Checkpoints(directory).open(run.spec, fresh=True)
    directory.save_round(1, pack_state(old(commit(run.path / "server"))))
    directory.close()
    return path


def server_state(path: Path) -> ServerState:
    state = read_state(path, NETWORK)
    assert isinstance(state, ServerState)
    return state


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_old_commit_exports_the_same_trunks_as_a_new_one(
    run: Trained, old_state: Path, tmp_path: Path
) -> None:
    before, now = server_state(old_state), server_state(run.path / "server")
    assert before.cuts == now.cuts == CUTS
    for device in CUTS:
        assert same(before.trunks[device].state_dict(), now.trunks[device].state_dict())
    export_trunks(before, tmp_path)
    manifests = [read_manifest(path, TrunkManifest) for path in (tmp_path, run.model("server"))]
    assert manifests[0].sha256 == manifests[1].sha256
    assert manifests[0].devices == {device: f"trunk-cut-{cut}.onnx" for device, cut in CUTS.items()}


def test_training_server_predicts_from_an_old_commit(run: Trained, old_state: Path) -> None:
    directory = StateDirectory(old_state)
    trunks = CommittedTrunks(run.spec, Checkpoints(directory))
    expected = server_state(run.path / "server")
    for device, cut in CUTS.items():
        entry = trunks.entry(device)
        assert entry is not None and (entry.cut, trunks.round) == (cut, 1)
        features = np.random.default_rng(cut).standard_normal((3, *entry.feature_shape)).astype("f4")
        with torch.inference_mode():
            logits = expected.trunks[device](torch.from_numpy(features)).numpy()
        np.testing.assert_array_equal(trunks.logits(entry.trunk, features), logits)
    assert trunks.entry("stranger") is None
    directory.close()


def test_run_continues_from_an_old_commit(run: Trained) -> None:
    new = commit(run.path / "server")
    spec = replace_struct(run.spec, rounds=2)
    models = [FleetModel(spec, build_for(spec)) for _ in range(2)]
    before = Committed(**old(new))
    assert before.trunks == {}
    models[0].load(vars(before))
    models[1].load(vars(new))
    features, labels = torch.ones(4, *models[0].feature_shape(2)), torch.arange(4)
    for model in models:
        for device, cut in CUTS.items():
            model.join(device, cut, 64)
        model.train("pi-2", features, labels, round_number=2, step=0, steps=1)
    assert same(models[0].trunk_weights(), models[1].trunk_weights())
    assert models[0].state()["trunk_of"] == new.trunk_of


def test_named_trunks_are_not_stored_twice(run: Trained) -> None:
    """torch keeps tensors that share memory once; a name and a shape for each are all that is added."""
    new = commit(run.path / "server")
    with_names, without = len(pack_state(vars(new))), len(pack_state(unnamed(new)))
    tensors = sum(len(trunk["weights"]) for trunk in new.trunks.values())
    assert 0 < with_names - without < 256 * tensors


def test_commit_without_any_trunk_is_refused(run: Trained, tmp_path: Path) -> None:
    directory = StateDirectory(tmp_path)
    Checkpoints(directory).open(run.spec, fresh=True)
    state = old(replace(commit(run.path / "server"), strategy={"cuts": CUTS}))
    directory.save_round(1, pack_state(state))
    directory.close()
    with pytest.raises(StateError, match="its state is not of this release"):
        read_state(tmp_path, NETWORK)
    with pytest.raises(KeyError):
        NamedTrunks.read(state)
