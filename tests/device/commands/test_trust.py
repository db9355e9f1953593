# SPDX-License-Identifier: Apache-2.0
"""`splitee trust` shows what releases are checked against, and can forget it."""

from __future__ import annotations

from pathlib import Path

import graphs
import pytest
from click.testing import CliRunner

from splitee.errors import ModelError
from splitee_device.commands.trust import trust
from splitee_device.inference.model_store import ModelStore


def output(*arguments: object) -> str:
    done = CliRunner().invoke(trust, list(map(str, arguments)), standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return done.output


def test_pinned_network_and_signature_are_shown_and_forgotten(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    store.install(graphs.bundle(), "pi-1")
    store.trust.note_signature(1_700_000_000_000)
    exact = store.trust.read().graphs[3].fp32
    assert output("--models", tmp_path).splitlines() == [
        "network: resnet18, 2 classes, images 3x8x8",
        f"cut 3: fp32 {exact[:12]}",
        "newest signature: 2023-11-14 22:13:20 UTC",
    ]
    assert "forgotten" in output("--models", tmp_path, "--forget")
    assert output("--models", tmp_path) == "nothing is pinned: the next release sets it\n"


def test_missing_models_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there are no models here"):
        output("--models", tmp_path / "nowhere")
