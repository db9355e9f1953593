# SPDX-License-Identifier: Apache-2.0
"""Small images to label, a model of two classes, and read-only folders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import graphs
import numpy as np
from other_user import not_as_root
from PIL import Image

from splitee.inference.manifest import CLIENT, write_manifest


def write_images(folder: Path, count: int, *, start: int = 0, name: str = "{:04}.png") -> list[Path]:
    """Write PNG files (8 x 8), each of noise around a random colour."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(start, start + count):
        random = np.random.default_rng(number)
        pixels = random.integers(0, 256, 3) + random.integers(-20, 21, (8, 8, 3))
        paths.append(folder / name.format(number))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[-1])
    return paths


def write_model(folder: Path, *, seed: int = 0) -> Path:
    """Write a model of the classes a and b."""
    folder.mkdir(parents=True, exist_ok=True)
    data = graphs.graph(tensors=graphs.sound_tensors(seed)).SerializeToString()
    (folder / CLIENT).write_bytes(data)
    write_manifest(folder, graphs.manifest(data))
    return folder


def contents(folder: Path) -> dict[bytes, list[str]]:
    """Paths of the images in a folder, hidden ones included, by their bytes."""
    found: dict[bytes, list[str]] = {}
    for path in sorted(folder.rglob("*.png")):
        found.setdefault(path.read_bytes(), []).append(str(path.relative_to(folder)))
    return found


@contextmanager
def not_writable(folder: Path) -> Iterator[None]:
    """Make a folder and its subfolders read-only; if root runs the test, the context runs as another user."""
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o555)
    try:
        with not_as_root():
            yield
    finally:
        for path in folders:
            path.chmod(0o755)
