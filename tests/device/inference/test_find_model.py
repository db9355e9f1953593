# SPDX-License-Identifier: Apache-2.0
"""The model that a path leads to: an exported one, or the one in service on a device."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitee.errors import ModelError
from splitee.inference.manifest import MANIFEST
from splitee_device.inference.find_model import find_model


def write_model(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / MANIFEST).write_text("{}")
    return path


def test_model_in_service_is_found_from_the_models_and_the_state_folder(tmp_path: Path) -> None:
    release = write_model(tmp_path / "state" / "models" / "releases" / "abc")
    current = tmp_path / "state" / "models" / "current"
    current.symlink_to(release)
    assert find_model(release) == release
    assert find_model(tmp_path / "state" / "models") == find_model(tmp_path / "state") == current


def test_server_folder_and_folder_without_a_model_are_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "server" / "models" / "devices" / "pi-1")
    for path in (tmp_path / "server", tmp_path / "server" / "models"):
        with pytest.raises(ModelError, match=r"the models of 1 devices: name one, .*/devices/pi-1"):
            find_model(path)
    with pytest.raises(ModelError, match=r"no model at .*, and none in service"):
        find_model(tmp_path)
