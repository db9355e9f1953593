# SPDX-License-Identifier: Apache-2.0
"""A device's images: which images of a source it uses, and which are held out."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from splitee.errors import ConfigError, DataError
from splitee.protocol.fields import Fit
from splitee.samples.fitting import Preparation, Region, Shape
from splitee_device.data.base import Indices, Labels, Source, Split
from splitee_device.data.division import Division, Keys
from splitee_device.data.fitting_report import report_fitting
from splitee_device.data.image_sets import LabelledImages
from splitee_device.data.source_report import report_source
from splitee_device.data.sources import in_order_of, open_source
from splitee_device.data.storage import IN_MEMORY, TICK_EVERY, Storage


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
class DeviceData:
    """What a device trains on and is evaluated on.

    Attributes:
        skipped: names of the images that could not be read.
        division: the use of images, to be stored; None: the data is not opened again.
        empty_classes: those that are named, have no images, and are not in `class_names`.
    """

    train: LabelledImages
    held_out: LabelledImages
    class_names: tuple[str, ...]
    skipped: tuple[str, ...]
    division: Division | None = None
    empty_classes: tuple[str, ...] = ()


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
    test: str | None = None,
    division: Division | None = None,
    class_names: tuple[str, ...] = (),
    storage: Storage = IN_MEMORY,
    tick: Callable[[], None] = lambda: None,
) -> DeviceData:
    """The images that `spec` names, as uint8 of `input_shape` (C, H, W), fitted by `fit`.

    `spec` is DIR (with DIR/CLASS/*.jpg and the like), FILE.parquet, torchvision:NAME:ROOT (nothing is
    downloaded) or builtin:NAME. The held-out images are those of `test`, named likewise, or else a source's
    own test split. If there is none, `holdout`, a share of each class, is held out of the whole first. Shards
    then divide the training images: each is balanced over the classes, none overlap, and together they have
    all. So devices with the same source, `seed` and `holdout` hold out the same images and share none for
    training. `limit` is the largest number of training images of the shard, and of held-out ones; classes
    keep their proportion.

    Args:
        division: the previous use of this source's images, with the same `holdout`, which does not change. It
            also has the seed for shuffling, instead of `seed`.
        class_names: the fleet's. If the source has these classes, in any order, or an empty folder for some,
            labels are numbered in this order; otherwise in the source's own order.
        storage: how images are kept; by default all of them in memory.
        tick: is called now and then meanwhile.

    Raises:
        DataError: a source is missing, empty or has one class, or a test image has another class.
    """
    _check_settings(holdout, limit)
    source = in_order_of(open_source(spec, test), class_names)
    before = division or Division(holdout)
    train, (held_out_split, held_out), division = _divide(spec, source, shard, before, seed, tick)
    if limit is not None:
        train, held_out = spread_evenly(train, limit), spread_evenly(held_out, limit)
    preparation = Preparation(input_shape, fit, region)
    report_fitting(spec, source.train, train, preparation)
    skipped: list[str] = []
    parts = [(source.train, train), (held_out_split, held_out)]
    to_train, to_test = storage.open(parts, preparation, skipped, tick)
    report_source(spec, source, to_train, to_test, skipped)
    return DeviceData(to_train, to_test, source.class_names, tuple(skipped), division, source.empty)


def spread_evenly(indices: Indices, limit: int) -> Indices:
    """At most `limit` of `indices`, evenly spread: in the order of classes, each class keeps its share."""
    if limit >= len(indices):
        return indices
    return indices[np.arange(limit) * len(indices) // limit]


def _check_settings(holdout: float, limit: int | None) -> None:
    if not 0 < holdout < 1:
        raise ConfigError(f"expected a held-out share between 0 and 1, such as 0.1; got {holdout}")
    if limit is not None and limit < 1:
        raise ConfigError(f"expected a limit of at least 1 image; got {limit}")


def _divide(
    spec: str, source: Source, shard: Shard | None, division: Division, seed: int, tick: Callable[[], None]
) -> tuple[Indices, tuple[Split, Indices], Division]:
    """This shard's training images, the held-out images with the split that they are in, and the division to
    be stored.
    """
    seed = seed if division.seed is None else division.seed
    train = _by_class(source.train.labels, seed)
    keys = _keys(source.train, tick)
    if source.test is not None:
        held_out = (source.test, np.concatenate(_by_class(source.test.labels, seed)))
        training = np.concatenate(train)
        aside = training[:0]
    else:
        aside, training = _divide_classes(train, keys, division)
        if keys:  # a copy in another class gets the use that is stored, as it does when this is opened again
            division = _after(division, keys, aside, training)
            aside, training = _divide_classes(train, keys, division)
        held_out = (source.train, aside)
    if keys:
        division = _after(division, keys, aside, training)
    if shard is not None:
        if len(training) < shard.count:
            raise DataError(
                f"{spec}: {len(training)} training images cannot be shared by {shard.count} shards; "
                "give more images or fewer shards"
            )
        training = training[shard.index - 1 :: shard.count]
    return training, held_out, replace(division, seed=seed)


def _divide_classes(train: list[Indices], keys: list[Keys], division: Division) -> tuple[Indices, Indices]:
    """The held-out and the training images of all classes."""
    parts = [division.divide(own, [keys[place] for place in own] if keys else None) for own in train]
    aside, training = (np.concatenate(part) for part in zip(*parts, strict=True))
    return aside, training


def _after(division: Division, keys: list[Keys], aside: Indices, training: Indices) -> Division:
    return division.after([keys[place] for place in aside], [keys[place] for place in training])


def _keys(split: Split, tick: Callable[[], None]) -> list[Keys]:
    """The keys of all images of a split, each of which is read for them; empty if they have none."""
    found: list[Keys] = []
    if split.keys is None:
        return found
    for index in range(len(split.labels)):
        if index % TICK_EVERY == 0:
            tick()
        found.append(split.keys(index))
    return found


def _by_class(labels: Labels, seed: int) -> list[Indices]:
    """The places of each class's images, shuffled. Taking every n-th of them gives balanced shards."""
    generator = np.random.default_rng(seed)
    return [generator.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
