# SPDX-License-Identifier: Apache-2.0
"""Makes the Fashion-MNIST subset that ships with the project from Debian's package dataset-fashion-mnist."""

from __future__ import annotations

import gzip
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

DEBIAN = "/usr/share/datasets/fashion-mnist"
SHIPPED = "device/splitee_device/data/builtin/fashion-mnist.npz"
CLASS_NAMES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


def read_idx(path: Path) -> Bytes:
    """A gzipped IDX file of unsigned bytes: two zeros, type 8, rank, big-endian sizes, then the values."""
    content = gzip.decompress(path.read_bytes())
    if content[:3] != b"\x00\x00\x08":
        raise click.ClickException(f"{path} is not an IDX file of unsigned bytes")
    rank = content[3]
    sizes = np.frombuffer(content, ">u4", count=rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(sizes)


def balanced(labels: Bytes, count: int, generator: np.random.Generator) -> npt.NDArray[np.intp]:
    """Indices of `count` random labels in ascending order, equally many of each class."""
    each, rest = divmod(count, len(CLASS_NAMES))
    if rest:
        raise click.ClickException(f"{count} images cannot be shared equally by {len(CLASS_NAMES)} classes")
    indices = [np.flatnonzero(labels == label) for label in range(len(CLASS_NAMES))]
    return np.sort(np.concatenate([generator.choice(in_class, each, replace=False) for in_class in indices]))


@click.command()
@click.option("--source", type=click.Path(path_type=Path, exists=True), default=DEBIAN)
@click.option("--out", type=click.Path(path_type=Path), default=SHIPPED)
@click.option("--train", type=int, default=6000, show_default=True)
@click.option("--test", type=int, default=1000, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def main(source: Path, out: Path, train: int, test: int, seed: int) -> None:
    """Write a balanced subset as OUT; the same arguments give the same bytes."""
    generator = np.random.default_rng(seed)
    arrays: dict[str, npt.NDArray[np.generic]] = {"class_names": np.array(CLASS_NAMES)}
    for split, prefix, count in (("train", "train", train), ("test", "t10k", test)):
        labels = read_idx(source / f"{prefix}-labels-idx1-ubyte.gz")
        chosen = balanced(labels, count, generator)
        arrays[f"{split}_images"] = read_idx(source / f"{prefix}-images-idx3-ubyte.gz")[chosen]
        arrays[f"{split}_labels"] = labels[chosen]
    np.savez_compressed(out, allow_pickle=False, **arrays)
    click.echo(f"{out}: {train} + {test} images, {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
