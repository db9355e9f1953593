"""A device's images in memory: which of a source are its own, and which are held out."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from splitee.errors import ConfigError, DataError
from splitee.protocol.fields import Fit
from splitee.samples.fitting import Pixels, Preparation, Region, Shape
from splitee.samples.images import UnreadableImage
from splitee_device.data.base import Indices, Labels, Source, Split
from splitee_device.data.fitting_report import report_fitting
from splitee_device.data.sources import open_source

log = logging.getLogger(__name__)

_NAMED_IN_LOG = 5


@dataclass(frozen=True)
class Shard:
    """Part `index` (from 1) of `count` equal parts of the training images."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """A shard written K/N, such as 2/3. Raises ConfigError."""
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ConfigError(f"expected a shard as K/N with K from 1 to N, such as 2/3; got {text!r}")
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True)
class ImageSet:
    """Images in memory: `images` uint8 (N, C, H, W), `labels` int64 (N,)."""

    images: Pixels
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: npt.NDArray[np.integer]) -> Pixels:
        """The images at `indices` (B,): uint8 (B, C, H, W)."""
        taken: Pixels = self.images[indices]
        return taken


@dataclass(frozen=True)
class DeviceData:
    """What a device trains on and is evaluated on; `skipped` names the images that could not be read."""

    train: ImageSet
    held_out: ImageSet
    class_names: tuple[str, ...]
    skipped: tuple[str, ...]


def open_data(
    spec: str,
    *,
    input_shape: Shape,
    fit: Fit = "crop",
    region: Region | None = None,
    shard: Shard | None = None,
    holdout: float = 0.1,
    seed: int = 0,
    limit: int | None = None,
    max_bytes: int = 1 << 30,
) -> DeviceData:
    """The images that `spec` names, as uint8 of `input_shape` (C, H, W), brought there by `fit`.

    `spec` is DIR (with DIR/CLASS/*.jpg and the like), FILE.parquet, torchvision:NAME:ROOT (nothing is
    downloaded) or builtin:NAME. A source's own test split is held out; where it has none, `holdout` (a share
    of each class) is taken first, from the whole. Shards then divide the training images: each balanced
    over the classes, none in two, all in one. So devices with the same source, `seed` and `holdout` hold out
    the same images and share none for training. `limit` keeps at most so many training images of the
    shard, and at most so many held-out ones, in proportion to the classes.

    Raises DataError for a source that is missing, empty, of one class, or more than `max_bytes` decoded.
    """
    _check_settings(holdout, limit)
    source = open_source(spec)
    train, (held_out_split, held_out) = _divide(spec, source, shard, holdout, seed)
    if limit is not None:
        train, held_out = spread_evenly(train, limit), spread_evenly(held_out, limit)
    _check_size(spec, len(train) + len(held_out), input_shape, max_bytes)
    preparation = Preparation(input_shape, fit, region)
    report_fitting(spec, source.train, train, preparation)
    skipped: list[str] = []
    data = DeviceData(
        _decode(source.train, train, preparation, skipped),
        _decode(held_out_split, held_out, preparation, skipped),
        source.class_names,
        tuple(skipped),
    )
    _report(spec, data)
    return data


def spread_evenly(indices: Indices, limit: int) -> Indices:
    """At most `limit` of `indices`, evenly spread over them: in order of classes, each keeps its share."""
    if limit >= len(indices):
        return indices
    return indices[np.arange(limit) * len(indices) // limit]


def _check_settings(holdout: float, limit: int | None) -> None:
    if not 0 < holdout < 1:
        raise ConfigError(f"expected a held-out share between 0 and 1, such as 0.1; got {holdout}")
    if limit is not None and limit < 1:
        raise ConfigError(f"expected a limit of at least 1 image; got {limit}")


def _divide(
    spec: str, source: Source, shard: Shard | None, holdout: float, seed: int
) -> tuple[Indices, tuple[Split, Indices]]:
    """Which training images are this shard's, and the held-out ones with the split that they are in."""
    train = _by_class(source.train.labels, seed)
    if source.test is not None:
        held_out = (source.test, np.concatenate(_by_class(source.test.labels, seed)))
    else:
        counts = [min(max(round(holdout * len(own)), 1), len(own) - 1) for own in train]
        held_out = (source.train, np.concatenate([own[:n] for own, n in zip(train, counts, strict=True)]))
        train = [own[n:] for own, n in zip(train, counts, strict=True)]
    mine = np.concatenate(train)
    if shard is not None:
        if len(mine) < shard.count:
            raise DataError(
                f"{spec}: {len(mine)} training images cannot be shared by {shard.count} shards; "
                "give more images or fewer shards"
            )
        mine = mine[shard.index - 1 :: shard.count]
    return mine, held_out


def _by_class(labels: Labels, seed: int) -> list[Indices]:
    """The places of each class's images, shuffled; dealt out in this order, every hand is balanced."""
    generator = np.random.default_rng(seed)
    return [generator.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]


def _check_size(spec: str, count: int, shape: Shape, max_bytes: int) -> None:
    each = int(np.prod(shape))
    if count * each > max_bytes:
        raise DataError(
            f"{spec}: {count} images of {' x '.join(map(str, shape))} need {count * each / 2**20:.1f} MiB, "
            f"more than {max_bytes / 2**20:.1f}; give --limit {max_bytes // each // 2} or --shard"
        )


def _decode(split: Split, indices: Indices, preparation: Preparation, skipped: list[str]) -> ImageSet:
    """The images at `indices` in the source's order; the names of unreadable ones go to `skipped`."""
    indices = np.sort(indices)
    images = np.empty((len(indices), *preparation.shape), np.uint8)
    labels = np.empty(len(indices), np.int64)
    kept = 0
    for index, decode in zip(indices, split.images(indices), strict=True):
        try:
            images[kept] = decode(preparation)
        except UnreadableImage as error:
            skipped.append(error.name)
            continue
        labels[kept] = split.labels[index]
        kept += 1
    return ImageSet(images[:kept], labels[:kept])


def _report(spec: str, data: DeviceData) -> None:
    train, held_out, skipped = len(data.train), len(data.held_out), len(data.skipped)
    if skipped:
        named = ", ".join(data.skipped[:_NAMED_IN_LOG]) + (", ..." if skipped > _NAMED_IN_LOG else "")
        if not train + held_out:
            raise DataError(f"{spec}: none of its {skipped} images can be read: {named}")
        log.warning(
            "%s: skipped %d unreadable of %d images: %s", spec, skipped, train + held_out + skipped, named
        )
    if train < 2 or not held_out:  # normalisation needs two in a batch
        raise DataError(
            f"{spec}: expected two images or more to train on and one to hold out, got {train} and "
            f"{held_out}; add images"
        )
    log.info(
        "%s: %d training and %d held-out images of %d classes", spec, train, held_out, len(data.class_names)
    )
