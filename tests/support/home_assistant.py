# SPDX-License-Identifier: Apache-2.0
"""Home Assistant's own code, in a separate environment that scripts/ensure_homeassistant.sh makes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from splitee.protocol.fleet import Capability, Profile

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / "build" / "homeassistant" / "bin" / "python"
VERDICT = Path(__file__).with_name("home_assistant_verdict.py")
LIMIT = 60.0  # seconds


def verdict(components: dict[str, Any], messages: list[tuple[str, str, str]]) -> dict[str, Any]:
    """Home Assistant's verdict on discovery payloads.

    Args:
        components: {key: payload of one entity's discovery}.
        messages: (key, name of a template in its payload, message) for each message to render.

    Returns:
        `refused`: {key: reason}; `ignored`: {key: unknown fields}; `rendered`: text of each message;
        `updates`: for each message, the state of its update entity, or none for other entities.
    """
    if not (PYTHON.parents[1] / "installed.txt").exists():
        if os.environ.get("CI") == "true":
            pytest.fail("no Home Assistant, and CI=true: run scripts/ensure_homeassistant.sh")
        pytest.skip("no Home Assistant: its schemas are NOT checked (scripts/ensure_homeassistant.sh)")
    request = json.dumps({"components": components, "messages": messages})
    done = subprocess.run(
        [PYTHON, VERDICT], input=request, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def profile(machine: str | None = None, class_names: tuple[str, ...] = ("a", "b")) -> Profile:
    capability = None
    if machine is not None:
        capability = Capability(
            network="resnet18", batch_size=32, codec="fp16", machine=machine, cores=4, threads=4
        )
    return Profile(
        protocol=1,
        instance=1,
        version="0.1.0",
        cut=2,
        class_names=class_names,
        train_samples=8,
        held_out_samples=2,
        capability=capability,
    )
