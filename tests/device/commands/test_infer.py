# SPDX-License-Identifier: Apache-2.0
"""`splitee infer`: what is refused before it classifies."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import call

from splitee.errors import ExitCode
from splitee_device.inference.model_store import ModelStore
from splitee_lab.local.brokers import free_port


def test_second_service_in_a_folder_of_models_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("infer", "--id", "pi-1", "--models", str(tmp_path), "--watch", str(tmp_path))
    broker = ("--broker", f"mqtt://127.0.0.1:{free_port()}", "--connect-timeout", "0.1")
    with ModelStore(tmp_path).locked():
        assert call(capsys, *flags, *broker) == (
            ExitCode.STATE,
            f"splitee: model directory {tmp_path} is in use by another process; stop it first",
        )
    assert call(capsys, *flags, *broker)[0] == ExitCode.UNREACHABLE
