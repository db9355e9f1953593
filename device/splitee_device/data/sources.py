"""The forms in which `--data` names a source of labelled images, and the checks that all must pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from splitee.errors import DataError
from splitee_device.data.base import Labels, Source
from splitee_device.data.builtin_sets import open_builtin
from splitee_device.data.folder import open_folder
from splitee_device.data.torchvision_sets import open_torchvision

_FORMS = "DIR (with DIR/CLASS/*.jpg), FILE.parquet, torchvision:NAME:ROOT, builtin:fashion-mnist"


def open_source(spec: str) -> Source:
    """The data set that `spec` names, its labels checked, no image decoded yet. Raises DataError."""
    kind, _, rest = spec.partition(":")
    if kind == "builtin":
        source = open_builtin(rest)
    elif kind == "torchvision":
        source = open_torchvision(rest)
    elif Path(spec).is_dir():
        source = open_folder(Path(spec))
    elif Path(spec).is_file():
        from splitee_device.data.parquet import open_parquet  # loads pyarrow

        source = open_parquet(Path(spec))
    else:
        raise DataError(f"no images at {spec!r}: there is no such folder or file; expected {_FORMS}")
    for split in filter(None, (source.train, source.test)):
        _check_labels(spec, split.labels, source.class_names)
    present = np.unique(source.train.labels)
    if len(present) == 1:
        raise DataError(
            f"{spec}: all {len(source.train.labels)} images are of one class, "
            f"{source.class_names[present[0]]!r}; training needs two or more"
        )
    return source


def _check_labels(spec: str, labels: Labels, class_names: tuple[str, ...]) -> None:
    if len(labels) == 0:
        raise DataError(f"{spec}: holds no images; expected {_FORMS}")
    outside = np.flatnonzero((labels < 0) | (labels >= len(class_names)))
    if len(outside):
        raise DataError(
            f"{spec}: image {outside[0]} has label {labels[outside[0]]}; "
            f"expected 0..{len(class_names) - 1} for its {len(class_names)} classes"
        )
