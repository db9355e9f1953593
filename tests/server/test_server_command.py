"""`splitee server`: what it refuses before it connects to anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from splitee.cli import splitee
from splitee.errors import ConfigError


@pytest.mark.parametrize("how", ["same-cut", "layerwise"])
def test_client_networks_are_not_averaged_over_mqtt(how: str, tmp_path: Path) -> None:
    arguments = ["server", "--client-averaging", how, "--state", str(tmp_path / "state")]
    error = CliRunner().invoke(splitee, arguments, standalone_mode=False).exception
    assert isinstance(error, ConfigError)
    assert str(error).startswith(f"--client-averaging {how} works in `splitee simulate` only: ")
    assert not (tmp_path / "state").exists()
