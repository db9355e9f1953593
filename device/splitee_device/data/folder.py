"""Images in a folder for each class: DIR/CLASS/*.jpg and the like."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from splitee.errors import DataError
from splitee.samples.images import IMAGE_SUFFIXES, load_image
from splitee_device.data.base import DeferredImage, Indices, Source, Split


def open_folder(root: Path) -> Source:
    """Each folder in `root` is a class, in the order of names; there is no test split. Raises DataError."""
    try:
        classes = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
        if not classes:
            raise DataError(f"{root}: holds no class folders; expected {root}/CLASS/*.jpg (or png, ...)")
        paths = [_images_in(root / name) for name in classes]
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from None
    files = [path for of_class in paths for path in of_class]
    if not files:
        raise DataError(f"{root}: its {len(classes)} class folders hold no images (*.jpg, *.png, ...)")
    labels = np.repeat(np.arange(len(classes)), [len(of_class) for of_class in paths])

    def images(indices: Indices) -> Iterator[DeferredImage]:
        return (partial(load_image, files[index]) for index in indices)

    return Source(tuple(classes), Split(labels, images), None)


def _images_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
