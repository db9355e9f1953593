# SPDX-License-Identifier: Apache-2.0
"""Which images to label first: those that the model is uncertain of, and those most unlike the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest

import numpy as np
import numpy.typing as npt

from splitee.inference.uncertainty import Array

MOST_CENTRES = 400  # chosen one after the other; the others follow in the order of their distances


def k_centre(features: Array, labelled: Array) -> npt.NDArray[np.intp]:
    """All indices of `features` (N, D), the most unlike first: each is the farthest from those before it.

    Greedy k-centre (Sener and Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set
    Approach", 2018). It begins with the distances to `labelled` (M, D) or, if there are none, with the
    image nearest to the mean. Distances are Euclidean, in features of unit variance.
    """
    count = len(features)
    if not count:
        return np.zeros(0, np.intp)
    features, labelled = _standardised(features, labelled)
    if len(labelled):
        distances = np.full(count, np.inf)
        for centre in labelled[:: -(-len(labelled) // MOST_CENTRES)]:
            np.minimum(distances, _squares(features, centre), out=distances)
    else:
        distances = -_squares(features, features.mean(0))
    chosen = []
    for number in range(min(count, MOST_CENTRES)):
        farthest = int(distances.argmax())
        chosen.append(farthest)
        to_it = _squares(features, features[farthest])
        distances = np.minimum(distances, to_it) if number or len(labelled) else to_it
        distances[chosen] = -np.inf
    rest = np.argsort(-distances, kind="stable")[: count - len(chosen)]
    return np.concatenate([np.asarray(chosen, np.intp), rest])


def interleave(*orders: Sequence[str]) -> list[str]:
    """The first of each order, then the second of each, and so on, without duplicates."""
    turns: Iterator[str | None] = chain.from_iterable(zip_longest(*orders))
    return list(dict.fromkeys(one for one in turns if one is not None))


def _standardised(features: Array, labelled: Array) -> tuple[Array, Array]:
    mean, std = features.mean(0), features.std(0)
    scale = 1 / np.where(std > 0, std, 1)
    return (features - mean) * scale, (labelled.reshape(-1, features.shape[1]) - mean) * scale


def _squares(features: Array, centre: Array) -> npt.NDArray[np.float64]:
    difference = features - centre
    squares: npt.NDArray[np.float64] = np.einsum("nd,nd->n", difference, difference, dtype=np.float64)
    return squares
