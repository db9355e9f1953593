# SPDX-License-Identifier: Apache-2.0
"""How a simulation divides one data set's images among its clients: pure functions of labels and a seed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from splitee.errors import ConfigError, DataError
from splitee.training.seeds import seed_for

Labels = npt.NDArray[np.int64]
Indices = npt.NDArray[np.intp]

MAX_ALPHA = 1e6  # far beyond this value the sampler's gamma variates are not accurate; it is iid long before
_FORMS = "iid, dirichlet:ALPHA such as dirichlet:0.5, or shards:K such as shards:2"


@dataclass(frozen=True)
class Partition:
    """`iid`; `dirichlet` with `alpha` > 0: smaller is more unequal; `shards` with `shards` >= 1 each."""

    kind: str
    alpha: float = 0.0
    shards: int = 0

    @classmethod
    def parse(cls, text: str) -> Partition:
        """A partition as the command line writes it. Raises ConfigError."""
        kind, _, value = text.partition(":")
        if text == "iid":
            return cls("iid")
        if kind == "dirichlet":
            return cls("dirichlet", alpha=_alpha(text, value))
        if kind == "shards" and re.fullmatch("[1-9][0-9]{0,5}", value):
            return cls("shards", shards=int(value))
        raise ConfigError(f"expected a partition as {_FORMS}; got {text!r}")


def _alpha(text: str, value: str) -> float:
    try:
        alpha = float(value)
    except ValueError:
        raise ConfigError(f"expected a partition as {_FORMS}; got {text!r}") from None
    if not 0 < alpha <= MAX_ALPHA:
        raise ConfigError(f"{text}: expected ALPHA above 0 and at most {MAX_ALPHA:.0e}; got {value}")
    return alpha


def too_few(images: int, what: str) -> DataError:
    """`what`: those among whom the images cannot be divided."""
    return DataError(f"{images} training images cannot be dealt to {what}: give more, or fewer clients")


def split_among(labels: Labels, clients: int, partition: Partition, seed: int) -> list[Indices]:
    """The indices of each client's images, ascending; together they are all of `labels`, none twice.

    Raises:
        DataError: there are fewer images than clients, or than shards.
    """
    portions = clients * max(partition.shards, 1)
    if len(labels) < portions:
        what = (
            f"{clients} clients"
            if portions == clients
            else f"{clients} clients with {partition.shards} shards"
        )
        raise too_few(len(labels), what)
    generator = np.random.default_rng(seed_for(seed, "partition"))
    if partition.kind == "dirichlet":
        dealt = _dirichlet(labels, clients, partition.alpha, generator)
    elif partition.kind == "shards":
        dealt = _shards(labels, clients, partition.shards, generator)
    else:
        dealt = np.array_split(generator.permutation(len(labels)), clients)
    return [np.sort(indices) for indices in dealt]


def _dirichlet(
    labels: Labels, clients: int, alpha: float, generator: np.random.Generator
) -> Sequence[Indices]:
    """Each class is split in proportions drawn from Dir(alpha) (Yurochkin et al. 2019, arXiv 1905.12022)."""
    parts: list[list[Indices]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        own = generator.permutation(np.flatnonzero(labels == label))
        shares = generator.dirichlet(np.full(clients, alpha))
        ends = np.rint(np.cumsum(shares)[:-1] * len(own)).astype(np.intp)
        for part, indices in zip(parts, np.split(own, ends), strict=True):
            part.append(indices)
    return [np.concatenate(part) for part in parts]


def _shards(labels: Labels, clients: int, each: int, generator: np.random.Generator) -> Sequence[Indices]:
    """Sorted by class, cut into clients x `each` parts, dealt at random (McMahan et al. 2017, 1602.05629)."""
    mixed = generator.permutation(len(labels))
    parts = np.array_split(mixed[np.argsort(labels[mixed], kind="stable")], clients * each)
    order = generator.permutation(len(parts))
    return [np.concatenate([parts[place] for place in mine]) for mine in np.split(order, clients)]


def partition_warnings(
    portions: Sequence[Labels], names: Sequence[str], class_names: Sequence[str]
) -> list[str]:
    """A line for each client that takes no part or has one class only. `portions`: the labels of each."""
    lines = []
    for name, labels in zip(names, portions, strict=True):
        present = np.unique(labels)
        if len(labels) < 2:
            count = "no images" if not len(labels) else "a single image"
            lines.append(f"{name} has {count}: it takes no part")
        elif len(present) == 1:
            lines.append(
                f"{name} has images of one class only, {class_names[present[0]]!r}: "
                "it trains, and its exit will know nothing else"
            )
    return lines
