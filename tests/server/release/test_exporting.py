"""The end of a run: a model directory for each device, with no more graphs made than there are networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import structs
from trained import NETWORK, Trained

from splitee.durable import StateDirectory
from splitee.inference.graphs import ClientModel
from splitee.inference.trunks import TrunkModels
from splitee.protocol.run_spec import RunSpec
from splitee_export.states import DeviceState, read_state
from splitee_server.release.exporting import export_run
from splitee_server.rounds.checkpoints import Checkpoints, Committed

pytestmark = pytest.mark.slow(9)


def spec(averaged: Trained) -> RunSpec:
    return structs.replace(averaged.spec, class_names=averaged.data.class_names)


def committed(averaged: Trained, **taken_from: str) -> Committed:
    """The server's last commit, with the client networks of these devices."""
    directory = StateDirectory(averaged.path / "server")
    stored = Checkpoints(directory).load()
    directory.close()
    assert stored is not None
    clients: dict[str, Any] = {}
    for device, other in taken_from.items():
        state = read_state(averaged.path / other.replace("_", "-"), NETWORK)
        assert isinstance(state, DeviceState)
        parts = {"client": state.client, "exit": state.exit}
        clients[device.replace("_", "-")] = torch.nn.ModuleDict(parts).state_dict()
    return replace(stored, clients=clients)


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows with each network that torch exports."""
    made: list[str] = []
    export = torch.onnx.export

    def counted(module: torch.nn.Module, *arguments: Any, **settings: Any) -> Any:
        made.append(type(module).__name__)
        return export(module, *arguments, **settings)

    monkeypatch.setattr(torch.onnx, "export", counted)
    return made


def test_devices_whose_networks_were_averaged_share_a_graph(
    averaged: Trained, exports: list[str], tmp_path: Path
) -> None:
    stored = committed(averaged, pi_1="pi-1", pi_2="pi-2", pi_3="pi-2")
    for name, tensor in stored.clients["pi-3"].items():
        if name.endswith("num_batches_tracked"):
            tensor.add_(7)  # which is each device's own
    folders = export_run(spec(averaged), stored, {}, tmp_path)
    models = {folder.name: ClientModel(folder, threads=1) for folder in folders}
    assert all(model.manifest.device == name for name, model in models.items())
    assert models["pi-2"].manifest.sha256 == models["pi-3"].manifest.sha256
    assert models["pi-1"].manifest.sha256 != models["pi-2"].manifest.sha256
    trunks = TrunkModels(tmp_path / "trunks").manifest
    assert trunks.devices == {
        "pi-1": "trunk-cut-1.onnx",
        "pi-2": "trunk-cut-2.onnx",
        "pi-3": "trunk-cut-2.onnx",
    }
    assert len(exports) == 4


def test_devices_with_networks_of_their_own_have_graphs_of_their_own(
    averaged: Trained, exports: list[str], tmp_path: Path
) -> None:
    stored = committed(averaged, pi_2="pi-2", pi_3="pi-3")
    own = stored.trunks["pi-3"]["weights"]
    next(tensor for tensor in own.values() if tensor.is_floating_point()).add_(1.0)
    folders = export_run(spec(averaged), stored, {}, tmp_path)
    pictures = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), np.uint8)
    features, other = (ClientModel(folder, threads=1)(pictures)[0] for folder in folders)
    assert not np.allclose(features, other)
    trunks = TrunkModels(tmp_path / "trunks").manifest
    assert trunks.devices == {
        "pi-1": "trunk-cut-1.onnx",
        "pi-2": "trunk-cut-2-pi-2.onnx",
        "pi-3": "trunk-cut-2-pi-3.onnx",
    }
    assert len(exports) == 5
