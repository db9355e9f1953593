# SPDX-License-Identifier: Apache-2.0
"""Makes models and software to release, with splitee's own commands, from a run of one device."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec
import numpy as np
import onnx
from onnx import numpy_helper
from torch import nn

from benchmarks.real_fleet import Fleet
from splitee.inference.manifest import ClientManifest, read_manifest, write_manifest
from splitee.samples.storage import SAMPLES

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from wheels import own_wheel  # type: ignore[import-not-found]

TRAINED = "pi-1"
NETWORK = ("--network", "benchmarks.release_files:network")
WIDE = 4096  # features of the second stage: the device's model has 4 MB, and is sent in many parts


def network(num_classes: int) -> nn.Module:
    """Three cuts, the second with WIDE features; images (B, 3, 32, 32) to logits (B, num_classes)."""
    return nn.Sequential(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 8, WIDE), nn.ReLU()
        ),
        nn.Sequential(nn.Linear(WIDE, 16), nn.ReLU()),
        nn.Linear(16, num_classes),
    )


def splitee(*arguments: object) -> str:
    """The standard output of a command. Raises ClickException if it fails, with the end of its errors."""
    command = [sys.executable, "-m", "splitee", *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(f"splitee {arguments[0]}: {done.stderr.strip()[-500:]}")
    return done.stdout


def train(directory: Path) -> tuple[Path, Path]:
    """Folders of the exported models of a device and of the server, after two rounds."""
    server = [*NETWORK, "--input", "3x32x32", "--rounds", "2"]
    device = ["--data", "builtin:fashion-mnist", "--limit", "1000", "--cut", "2", *NETWORK]
    with Fleet(
        directory / "run", [*server, "--devices", "1", "--seed", "1"], {TRAINED: device}, isolated=()
    ) as fleet:
        fleet.finish()
    models = directory / "models"
    for name in (TRAINED, "server"):
        splitee("export", *NETWORK, "--state", directory / "run" / name, "--out", models / name)
    return models / TRAINED, models / "server"


class Models:
    """Copies and variants of a trained model, with a device's name in each manifest."""

    def __init__(self, trained: Path, directory: Path) -> None:
        self._trained = trained
        self._directory = directory

    def base(self, device: str, *, has_images: bool) -> Path:
        """The trained model. Without its held-out images, the device cannot detect a worse model."""
        folder = self._copy(device, "base", 2)
        if not has_images:
            (folder / SAMPLES).unlink()
        return folder

    def variants(self, devices: Sequence[str], name: str, number: int, factor: float) -> list[Path]:
        """A model of round `number` for each device; the first convolution's weights are times `factor`."""
        folders = [self._copy(device, name, number) for device in devices]
        for folder in folders:
            manifest = read_manifest(folder, ClientManifest)
            graph = onnx.load(folder / manifest.file)
            first = next(value for value in graph.graph.initializer if len(value.dims) == 4)
            weights = (numpy_helper.to_array(first) * factor).astype(np.float32)
            first.CopyFrom(numpy_helper.from_array(weights, first.name))
            data = graph.SerializeToString()
            (folder / manifest.file).write_bytes(data)
            digest = hashlib.sha256(data).hexdigest()
            write_manifest(folder, msgspec.structs.replace(manifest, sha256={manifest.file: digest}))
        return folders

    def _copy(self, device: str, name: str, number: int) -> Path:
        folder = self._directory / name / device
        shutil.copytree(self._trained, folder)
        manifest = read_manifest(folder, ClientManifest)
        write_manifest(folder, msgspec.structs.replace(manifest, device=device, round=number))
        return folder


def software(directory: Path, version: str, signing_key: Path, replaced: dict[str, str]) -> Path:
    """This source tree's wheel as another version, packed and signed.

    Args:
        replaced: other source texts, by path in the wheel.
    """
    directory.mkdir(exist_ok=True)
    wheel = own_wheel(directory, version, replaced=replaced)
    path = directory / f"splitee-{version}-own.wheels"
    splitee("pack", wheel, "--signing-key", signing_key, "--out", path)
    return path
