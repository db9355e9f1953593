# SPDX-License-Identifier: Apache-2.0
"""torch may be imported in the wings below only. The base install has no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "core": "splitee",
    "web": "splitee_web",
    "device": "splitee_device",
    "server": "splitee_server",
    "export": "splitee_export",
    "broker_config": "splitee_broker",
}
TORCH = (
    "splitee.networks",
    "splitee.training",
    "splitee_device.after_training",
    "splitee_device.agent",
    "splitee_device.data.batches",
    "splitee_device.participate",
    "splitee_device.profiler.auto_codec",
    "splitee_device.profiler.auto_precision",
    "splitee_device.profiler.reference",
    "splitee_device.profiler.stages",
    "splitee_device.profiler.step_times",
    "splitee_device.profiler.worker",
    "splitee_device.training",
    "splitee_export",
    "splitee_server.learning",
    "splitee_server.offload.trunks",
    "splitee_server.ranks.begin",
    "splitee_server.ranks.group",
    "splitee_server.ranks.leader",
    "splitee_server.ranks.messages",
    "splitee_server.ranks.state_transfer",
    "splitee_server.ranks.ranks",
    "splitee_server.ranks.shared_memory",
    "splitee_server.ranks.trainer",
    "splitee_server.release",
    "splitee_server.rounds",
    "splitee_server.service",
)
IMPORT_ALL = """
import importlib, sys

class Blocked:
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in ("torch", "torchvision"):
            raise ImportError(f"{name} is imported")

sys.meta_path.insert(0, Blocked())
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(f"{name}: {error}")
"""


def modules() -> list[str]:
    """Every module of the packages that devices and servers install."""
    found = []
    for folder, package in PACKAGES.items():
        for path in sorted((ROOT / folder / package).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found.append(".".join(part for part in parts if part != "__init__"))
    return [name for name in found if not name.endswith("__main__")]


def is_torch(module: str) -> bool:
    return any(module == wing or module.startswith(f"{wing}.") for wing in TORCH)


@pytest.mark.slow
def test_modules_outside_of_the_torch_wings_import_without_torch() -> None:
    free = [module for module in modules() if not is_torch(module)]
    assert "splitee_server.commands.serve" in free
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *free], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == ""


@pytest.mark.slow
def test_every_listed_torch_wing_exists() -> None:
    assert [wing for wing in TORCH if not any(m == wing or m.startswith(f"{wing}.") for m in modules())] == []
