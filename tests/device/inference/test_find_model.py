# SPDX-License-Identifier: Apache-2.0
"""Which model a path means: an exported one, or the one in service of a device."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitee.errors import ModelError
from splitee.inference.manifest import MANIFEST
from splitee_device.inference.find_model import find_model


def model(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / MANIFEST).write_text("{}")
    return path


def test_the_model_in_service_is_found_from_the_models_and_from_the_state(tmp_path: Path) -> None:
    release = model(tmp_path / "state" / "models" / "releases" / "abc")
    current = tmp_path / "state" / "models" / "current"
    current.symlink_to(release)
    assert find_model(release) == release
    assert find_model(tmp_path / "state" / "models") == find_model(tmp_path / "state") == current


def test_a_servers_models_are_named_and_nothing_is_said_plainly(tmp_path: Path) -> None:
    model(tmp_path / "server" / "models" / "devices" / "pi-1")
    for path in (tmp_path / "server", tmp_path / "server" / "models"):
        with pytest.raises(ModelError, match=r"the models of 1 devices: name one, .*/devices/pi-1"):
            find_model(path)
    with pytest.raises(ModelError, match=r"no model at .*, and none in service"):
        find_model(tmp_path)
