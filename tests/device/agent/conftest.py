"""Devices whose server follows a script."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted_device import Device


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Device]]:
    made: list[Device] = []

    def make_device(*args: Any, **settings: Any) -> Device:
        made.append(Device(tmp_path / f"device-{len(made)}", *args, **settings))
        return made[-1]

    yield make_device
    for device in made:
        device.directory.close()
