# SPDX-License-Identifier: Apache-2.0
"""Class folders and Parquet files of small images."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from splitee_device.data.sources import open_source


def png(number: int) -> bytes:
    """A uniform grey image (6 x 6) of this grey value."""
    buffer = io.BytesIO()
    Image.new("L", (6, 6), number).save(buffer, "PNG")
    return buffer.getvalue()


def write_folder(root: Path, counts: Mapping[str, int]) -> None:
    """Write class folders of images, numbered through all classes."""
    number = 0
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for _ in range(count):
            (root / name / f"{number:03}.png").write_bytes(png(number))
            number += 1


def write_photographs(
    root: Path, counts: Mapping[str, int], size: tuple[int, int] = (40, 30), seed: int = 0
) -> None:
    """Write class folders of JPEG files of random pixels. `size`: width and height."""
    generator = np.random.default_rng(seed)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (size[1], size[0], 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:03}.jpg")


def write_parquet(
    path: Path, contents: Sequence[bytes | None], labels: Sequence[int], names: object = None
) -> None:
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata=None if names is None else {"class_names": json.dumps(names)},
    )
    images = [{"bytes": content, "path": None} for content in contents]
    table = pa.Table.from_pydict({"image": images, "label": list(labels)}, schema=schema)
    pq.write_table(table, path, row_group_size=7)


def write_clothes(root: Path, counts: Mapping[str, int], first: int = 0) -> None:
    """Write class folders of Fashion-MNIST images: those from number `first` on in each class.

    The same number is always the same image in the same file.
    """
    source = open_source("builtin:fashion-mnist")
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        found = np.flatnonzero(source.train.labels == source.class_names.index(name))
        places = np.sort(found)[first : first + count]
        for number, image in enumerate(source.train.images(places), start=first):
            image(lambda photograph: photograph).save(root / name / f"{number:04}.png")
