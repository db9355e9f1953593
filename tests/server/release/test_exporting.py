# SPDX-License-Identifier: Apache-2.0
"""The export of a run: a model directory for each device, and one graph for each distinct network."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import structs
from trained import NETWORK, Trained

from splitee.durable import StateDirectory
from splitee.inference.combination import TRUNK_ALONE
from splitee.inference.graphs import ClientModel
from splitee.inference.manifest import ClientManifest, read_manifest
from splitee.inference.trunks import TrunkModels
from splitee.inference.uncertainty import normalized_entropy
from splitee.protocol.run_spec import RunSpec
from splitee_export.states import DeviceState, read_state
from splitee_server.release.exporting import export_run
from splitee_server.rounds.checkpoints import Checkpoints, Committed
from splitee_server.rounds.evaluation import Score

pytestmark = [pytest.mark.slow(9), pytest.mark.xdist_group("exports")]


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


def evaluated(seed: int, images: int) -> Score:
    """The score of a device: its trunk is always right, its exit for low uncertainties only."""
    generator, score = np.random.default_rng(seed), Score()
    labels = generator.integers(0, 10, images)
    uncertainty = generator.random(images).astype("f4")
    exit_labels = np.where(uncertainty < 0.4, labels, (labels + 1) % 10)
    score.add(labels, exit_labels, uncertainty, labels, 0.5)
    return score


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The class names of the networks that torch has exported."""
    made: list[str] = []
    export = torch.onnx.export

    def counted(module: torch.nn.Module, *arguments: Any, **settings: Any) -> Any:
        made.append(type(module).__name__)
        return export(module, *arguments, **settings)

    monkeypatch.setattr(torch.onnx, "export", counted)
    return made


def test_devices_with_averaged_networks_share_a_graph_and_a_threshold(
    averaged: Trained, exports: list[str], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """pi-2 and pi-3 hold out 240 images, pi-4 the same as pi-3; pi-1 too few to choose a threshold."""
    caplog.set_level("INFO", "splitee_server")
    stored = committed(averaged, pi_1="pi-1", pi_2="pi-2", pi_3="pi-2", pi_4="pi-2")
    stored.trunk_of["pi-4"] = stored.trunk_of["pi-3"]
    for name, tensor in stored.clients["pi-3"].items():
        if name.endswith("num_batches_tracked"):
            tensor.add_(7)  # which is each device's own
    scores = {device: evaluated(seed, 120) for seed, device in enumerate(("pi-1", "pi-2", "pi-3"))}
    scores["pi-4"] = scores["pi-3"]
    folders = export_run(spec(averaged), stored, scores, tmp_path)
    models = {folder.name: ClientModel(folder, threads=1) for folder in folders}
    assert all(model.manifest.device == name for name, model in models.items())
    assert models["pi-2"].manifest.sha256 == models["pi-3"].manifest.sha256
    assert models["pi-1"].manifest.sha256 != models["pi-2"].manifest.sha256
    few, *pooled = (models[device].manifest for device in ("pi-1", "pi-2", "pi-3", "pi-4"))
    assert (few.threshold, few.threshold_images) == (0.5, 0)
    share = scores["pi-1"].accuracies().offload_share
    assert few.expected_offload == pytest.approx(share, abs=1e-6)  # as it travels
    for manifest in pooled:
        assert manifest.threshold_images == 240
        assert manifest.threshold == pytest.approx(0.4, abs=0.03)
        assert manifest.expected_offload == pytest.approx(0.6, abs=0.1)
    assert "cut 1 (pi-1): threshold 0.500 (the run's): expected " in caplog.text
    assert "(120 images held out; choosing one takes 200)" in caplog.text
    assert re.search(
        r"cut 2 \(pi-2, pi-3, pi-4\): threshold 0\.\d+ \(chosen on 240 images\): expected", caplog.text
    )
    manifest = TrunkModels(tmp_path / "trunks").manifest
    assert manifest.devices == {
        "pi-1": "trunk-cut-1.onnx",
        "pi-2": "trunk-cut-2.onnx",
        "pi-3": "trunk-cut-2.onnx",
        "pi-4": "trunk-cut-2.onnx",
    }
    assert len(exports) == 4


def test_complementary_exit_and_trunk_are_combined_if_all_logits_were_kept(
    averaged: Trained, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Each is certain about half of the classes; pi-2 has kept the logits of some images only."""
    caplog.set_level("INFO", "splitee_server")
    generator, scores = np.random.default_rng(1), {}
    for device, room in (("pi-1", 1000), ("pi-2", 200)):
        labels = generator.integers(0, 10, 300)
        exits, trunks = generator.normal(size=(2, 300, 10)).astype("f4")
        exits[labels < 5] += 6 * np.eye(10, dtype="f4")[labels[labels < 5]]
        trunks[labels >= 5] += 6 * np.eye(10, dtype="f4")[labels[labels >= 5]]
        scores[device] = score = Score(room=room)
        for batch in np.split(np.arange(300), 3):
            one = exits[batch], trunks[batch], labels[batch]
            uncertainty = normalized_entropy(one[0])
            score.add(one[2], one[0].argmax(axis=1), uncertainty, one[1].argmax(axis=1), 0.5)
            score.keep_logits(*one)
    folders = export_run(spec(averaged), committed(averaged, pi_1="pi-1", pi_2="pi-2"), scores, tmp_path)
    combined, kept_too_few = (read_manifest(folder, ClientManifest) for folder in folders)
    assert combined.combination.exit == pytest.approx(combined.combination.trunk, rel=0.3)
    assert combined.expected_accuracy is not None
    assert combined.expected_accuracy > 0.9
    assert kept_too_few.combination == TRUNK_ALONE
    assert kept_too_few.expected_accuracy is not None
    assert kept_too_few.expected_accuracy < 0.8
    assert re.search(r"cut 1: offloaded images: \d+\.\d+ x exit \+ \d+\.\d+ x trunk", caplog.text)


def test_devices_with_separate_networks_get_separate_graphs(
    averaged: Trained, exports: list[str], tmp_path: Path
) -> None:
    stored = committed(averaged, pi_2="pi-2", pi_3="pi-3")
    shared = stored.trunks[stored.trunk_of["pi-3"]]
    own = {name: tensor.clone() for name, tensor in shared["weights"].items()}
    next(tensor for tensor in own.values() if tensor.is_floating_point()).add_(1.0)
    trunks = {**stored.trunks, "pi-3": {**shared, "weights": own}}
    stored = replace(stored, trunks=trunks, trunk_of={**stored.trunk_of, "pi-3": "pi-3"})
    scores = {"pi-2": evaluated(2, 300), "pi-3": evaluated(3, 100)}
    folders = export_run(spec(averaged), stored, scores, tmp_path)
    manifests = (read_manifest(folder, ClientManifest) for folder in folders)
    assert [manifest.threshold_images for manifest in manifests] == [300, 0]
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), np.uint8)
    features, other = (ClientModel(folder, threads=1)(images)[0] for folder in folders)
    assert not np.allclose(features, other)
    trunks = TrunkModels(tmp_path / "trunks").manifest
    assert trunks.devices == {
        "pi-1": "trunk-cut-1.onnx",
        "pi-2": "trunk-cut-2-pi-2.onnx",
        "pi-3": "trunk-cut-2-pi-3.onnx",
    }
    assert len(exports) == 5
