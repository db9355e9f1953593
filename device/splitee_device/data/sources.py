"""Where labelled pictures come from: an image folder, a Parquet file, torchvision, or this package."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from splitee.errors import DataError
from splitee.samples.images import (
    PICTURE_SUFFIXES,
    Pixels,
    Shape,
    UnreadablePicture,
    fit_array,
    fit_image,
    load_picture,
)

Labels = npt.NDArray[np.int64]
Indices = npt.NDArray[np.intp]
Picture = Callable[[Shape], Pixels]
"""One picture, decoded when it is called; raises UnreadablePicture."""

MAX_CLASSES = 1 << 16
_BUILTIN = Path(__file__).parent / "builtin"
_FORMS = "DIR (with DIR/CLASS/*.jpg), FILE.parquet, torchvision:NAME:ROOT, builtin:fashion-mnist"


@dataclass(frozen=True)
class Split:
    """Labelled pictures on demand: `pictures(indices)` gives them one by one, in the order of `indices`.

    `indices` ascend, so that a file is read once and in its order.
    """

    labels: Labels
    pictures: Callable[[Indices], Iterator[Picture]]


@dataclass(frozen=True)
class Source:
    """A data set: `test` is None where it has no test split of its own."""

    class_names: tuple[str, ...]
    train: Split
    test: Split | None


def open_source(spec: str) -> Source:
    """The data set that `spec` names, its labels checked, no picture decoded yet. Raises DataError."""
    kind, _, rest = spec.partition(":")
    if kind == "builtin":
        source = _builtin(rest)
    elif kind == "torchvision":
        source = _torchvision(rest)
    elif Path(spec).is_dir():
        source = _folder(Path(spec))
    elif Path(spec).is_file():
        source = _parquet(Path(spec))
    else:
        raise DataError(f"no pictures at {spec!r}: there is no such folder or file; expected {_FORMS}")
    for split in filter(None, (source.train, source.test)):
        _check_labels(spec, split.labels, source.class_names)
    present = np.unique(source.train.labels)
    if len(present) == 1:
        raise DataError(
            f"{spec}: all {len(source.train.labels)} pictures are of one class, "
            f"{source.class_names[present[0]]!r}; training needs two or more"
        )
    return source


def _check_labels(spec: str, labels: Labels, class_names: tuple[str, ...]) -> None:
    if len(labels) == 0:
        raise DataError(f"{spec}: holds no pictures; expected {_FORMS}")
    outside = np.flatnonzero((labels < 0) | (labels >= len(class_names)))
    if len(outside):
        raise DataError(
            f"{spec}: picture {outside[0]} has label {labels[outside[0]]}; "
            f"expected 0..{len(class_names) - 1} for its {len(class_names)} classes"
        )


def _folder(root: Path) -> Source:
    try:
        classes = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
        if not classes:
            raise DataError(f"{root}: holds no class folders; expected {root}/CLASS/*.jpg (or png, ...)")
        paths = [_pictures_in(root / name) for name in classes]
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from None
    files = [path for of_class in paths for path in of_class]
    if not files:
        raise DataError(f"{root}: its {len(classes)} class folders hold no pictures (*.jpg, *.png, ...)")
    labels = np.repeat(np.arange(len(classes)), [len(of_class) for of_class in paths])

    def pictures(indices: Indices) -> Iterator[Picture]:
        return (partial(load_picture, files[index]) for index in indices)

    return Source(tuple(classes), Split(labels, pictures), None)


def _pictures_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)


def _parquet(path: Path) -> Source:
    from splitee_device.data.parquet import ParquetPictures

    parquet = ParquetPictures(path)
    names = parquet.class_names or _numbered(parquet.labels)

    def pictures(indices: Indices) -> Iterator[Picture]:
        return (
            partial(load_picture, encoded, name=f"{path} row {row}")
            for row, encoded in parquet.encoded(indices)
        )

    return Source(names, Split(parquet.labels, pictures), None)


def _numbered(labels: Labels) -> tuple[str, ...]:
    """Names for classes that have none; a label beyond all bounds is left for the check of the labels."""
    return tuple(map(str, range(min(int(labels.max(initial=0)) + 1, MAX_CLASSES))))


def _builtin(name: str) -> Source:
    known = sorted(path.stem for path in _BUILTIN.glob("*.npz"))
    if name not in known:
        raise DataError(f"unknown data set builtin:{name}; there is builtin:{', builtin:'.join(known)}")
    with np.load(_BUILTIN / f"{name}.npz", allow_pickle=False) as arrays:
        train, test = (_in_memory(arrays[f"{s}_images"], arrays[f"{s}_labels"]) for s in ("train", "test"))
        return Source(tuple(map(str, arrays["class_names"])), train, test)


def _in_memory(images: Pixels, labels: npt.NDArray[np.uint8]) -> Split:
    def pictures(indices: Indices) -> Iterator[Picture]:
        return (partial(fit_array, images[index]) for index in indices)

    return Split(labels.astype(np.int64), pictures)


def _torchvision(rest: str) -> Source:
    name, _, root = rest.partition(":")
    if not name or not root:
        raise DataError(
            f"expected torchvision:NAME:ROOT, such as torchvision:STL10:data; got torchvision:{rest}"
        )
    factory = _torchvision_class(name)
    if not Path(root).is_dir():
        raise DataError(
            f"torchvision:{rest}: {root} is not a folder; splitee downloads nothing, put the data there"
        )
    train, test = _torchvision_splits(factory, name, root)
    train_split = _torchvision_split(train, f"{name} training picture")
    test_split = _torchvision_split(test, f"{name} test picture") if test is not None else None
    names = tuple(map(str, getattr(train, "classes", ()))) or _numbered(train_split.labels)
    return Source(names, train_split, test_split)


def _torchvision_class(name: str) -> Any:
    from torchvision import datasets

    classes = {known: getattr(datasets, known) for known in datasets.__all__}
    known = [known for known in classes if "root" in inspect.signature(classes[known]).parameters]
    if name in known:
        return classes[name]
    by_lower_case = {known_name.lower(): known_name for known_name in known}
    nearest = [by_lower_case[near] for near in difflib.get_close_matches(name.lower(), by_lower_case)]
    hint = f"the nearest are {', '.join(nearest)}" if nearest else "see torchvision.datasets for the names"
    raise DataError(f"torchvision has no data set {name!r}; {hint}")


def _torchvision_splits(factory: Any, name: str, root: str) -> tuple[Any, Any]:
    """Training and test data sets; None for the second where torchvision knows no test split of it."""
    parameters = inspect.signature(factory).parameters
    if "train" in parameters:
        choices: list[dict[str, Any]] = [{"train": True}, {"train": False}]
    elif "split" in parameters:  # its default is the training part, by whatever name
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
        except Exception as error:  # each data set has its own way to say that files are missing or broken
            if opened and str(error).startswith("Unknown value"):  # it has no part of this name
                continue
            reason = str(error).split(". ")[0]
            raise DataError(
                f"{root} does not hold {name} as torchvision stores it ({reason}); "
                "splitee downloads nothing, put the data there"
            ) from None
        if len(opened) == 2:
            break
    return opened[0], opened[1] if len(opened) == 2 else None


def _torchvision_split(dataset: Any, name: str) -> Split:
    def fit(index: int, shape: Shape) -> Pixels:
        try:
            picture = dataset[index][0]
        except Exception as error:
            raise UnreadablePicture(f"{name} {index}", str(error)) from None
        if not isinstance(picture, Image.Image):
            raise UnreadablePicture(f"{name} {index}", type(picture).__name__)
        return fit_image(picture, shape)

    def pictures(indices: Indices) -> Iterator[Picture]:
        return (partial(fit, int(index)) for index in indices)

    return Split(_torchvision_labels(dataset, name), pictures)


def _torchvision_labels(dataset: Any, name: str) -> Labels:
    for attribute in ("targets", "labels", "_labels"):
        if hasattr(dataset, attribute):
            labels = np.asarray(getattr(dataset, attribute))
            break
    else:  # the rest give a label only together with its picture
        labels = np.asarray([dataset[index][1] for index in range(len(dataset))])
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(f"{name}s have no class numbers as labels; expected a data set for classification")
    return labels.astype(np.int64)
