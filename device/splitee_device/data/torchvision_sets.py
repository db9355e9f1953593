# SPDX-License-Identifier: Apache-2.0
"""torchvision's data sets, from a folder that has them already; nothing is downloaded."""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

from splitee.errors import DataError
from splitee.samples.fitting import T
from splitee.samples.images import UnreadableImage
from splitee_device.data.base import DeferredImage, Indices, Labels, Source, Split, expanded, numbered

log = logging.getLogger(__name__)


def open_torchvision(rest: str) -> Source:
    """The data set that `rest`, NAME:ROOT, names. Raises DataError."""
    name, _, folder = rest.partition(":")
    root = str(expanded(folder))
    if not name or not folder:
        raise DataError(
            f"expected torchvision:NAME:ROOT, such as torchvision:STL10:data; got torchvision:{rest}"
        )
    factory = _dataset_class(name)
    if not Path(root).is_dir():
        raise DataError(
            f"torchvision:{rest}: {root} is not a folder; splitee downloads nothing, put the data there"
        )
    train, test = _open_parts(factory, name, root)
    train_split = _split(train, f"{name} training image")
    test_split = _split(test, f"{name} test image") if test is not None else None
    names = tuple(map(str, getattr(train, "classes", ()))) or numbered(train_split.labels)
    return Source(names, train_split, test_split)


def _dataset_class(name: str) -> Any:
    from torchvision import datasets

    classes = {known: getattr(datasets, known) for known in datasets.__all__ if known != "VisionDataset"}
    known = [known for known in classes if "root" in inspect.signature(classes[known]).parameters]
    if name in known:
        return classes[name]
    by_lower_case = {known_name.lower(): known_name for known_name in known}
    nearest = [by_lower_case[near] for near in difflib.get_close_matches(name.lower(), by_lower_case)]
    hint = f"the nearest are {', '.join(nearest)}" if nearest else "see torchvision.datasets for the names"
    raise DataError(f"torchvision has no data set {name!r}; {hint}")


def _open_parts(factory: Any, name: str, root: str) -> tuple[Any, Any]:
    """Training and test data sets; the second is None if torchvision knows no test split."""
    parameters = inspect.signature(factory).parameters
    if "train" in parameters:
        choices: list[dict[str, Any]] = [{"train": True}, {"train": False}]
    elif "split" in parameters:  # its default is the training part, whatever its name
        if parameters["split"].default is inspect.Parameter.empty:
            raise DataError(f"torchvision:{name} leaves the choice of a training part open; give another set")
        choices = [{"split": parameters["split"].default}, {"split": "test"}, {"split": "val"}]
    else:
        choices = [{}]
    opened: list[Any] = []
    for choice in choices:
        try:
            opened.append(factory(root, **choice))
        except ModuleNotFoundError:
            raise
        except Exception as error:  # each data set reports missing or broken files in its own way
            if opened and str(error).startswith("Unknown value"):  # there is no part of this name
                continue
            reason = str(error).split(". ")[0]
            raise DataError(
                f"{root} does not hold {name} as torchvision stores it ({reason}); "
                "splitee downloads nothing, put the data there"
            ) from None
        if len(opened) == 2:
            break
    return opened[0], opened[1] if len(opened) == 2 else None


def _split(dataset: Any, name: str) -> Split:
    one_at_a_time = Lock()  # some data sets read from one open file

    def load(index: int, make: Callable[[Image.Image], T]) -> T:
        try:
            with one_at_a_time:
                image = dataset[index][0]
            if not isinstance(image, Image.Image):
                raise TypeError(type(image).__name__)
            return make(image)
        except ModuleNotFoundError:
            raise
        except Exception as error:
            raise UnreadableImage(f"{name} {index}", str(error)) from None

    def images(indices: Indices) -> Iterator[DeferredImage]:
        return (partial(load, int(index)) for index in indices)

    return Split(_labels(dataset, name), images, lambda index: f"{name} {index}")


def _labels(dataset: Any, name: str) -> Labels:
    listed = _listed_labels(dataset)
    found = _labels_with_images(dataset, name) if listed is None else listed
    try:
        labels = np.asarray(found)
    except ValueError:  # a list for each image, of different lengths
        raise _no_class_numbers(name) from None
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise _no_class_numbers(name)
    return labels.astype(np.int64)


def _listed_labels(dataset: Any) -> Any:
    """The labels, if the data set has a list of them, whose name depends on the set."""
    for attribute in ("targets", "labels", "_labels", "y"):
        if hasattr(dataset, attribute):
            return getattr(dataset, attribute)
    return [label for _, label in dataset._samples] if hasattr(dataset, "_samples") else None


def _labels_with_images(dataset: Any, name: str) -> list[int]:
    """The labels of a data set that gives each only with its image, so that all images are read."""
    log.info("%ss: reading all %d for their labels", name, len(dataset))
    labels: list[int] = []
    for index in range(len(dataset)):
        try:
            label = dataset[index][1]
        except ModuleNotFoundError:
            raise
        except Exception as error:  # each data set reports broken files in its own way
            raise DataError(f"{name} {index} cannot be read, nor its label: {error}") from None
        if not isinstance(label, int | np.integer):
            raise _no_class_numbers(name)
        labels.append(int(label))
    return labels


def _no_class_numbers(name: str) -> DataError:
    return DataError(f"{name}s have no class numbers as labels; expected a data set for classification")
