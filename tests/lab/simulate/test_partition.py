# SPDX-License-Identifier: Apache-2.0
"""Partitions: every image once, decided by the seed, as uneven as requested; mistakes in one line."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings

from splitee.errors import ConfigError, DataError
from splitee_lab.simulate.partition import Partition, partition_warnings, split_among

LABELS = np.arange(600) % 10


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["iid", "dirichlet:0.01", "dirichlet:0.5", "dirichlet:1e6", "shards:1", "shards:3"]),
    st.integers(1, 12),
    st.integers(36, 200),
    st.integers(0, 5),
)
def test_every_image_goes_to_one_client(text: str, clients: int, samples: int, seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 7, samples)
    dealt = split_among(labels, clients, Partition.parse(text), seed)
    assert len(dealt) == clients
    assert sorted(np.concatenate(dealt)) == list(range(samples))
    again = split_among(labels, clients, Partition.parse(text), seed)
    assert all(np.array_equal(one, other) for one, other in zip(dealt, again, strict=True))


@pytest.mark.parametrize("text", ["iid", "dirichlet:0.5", "shards:2"])
def test_another_seed_gives_another_partition(text: str) -> None:
    one, other = (split_among(LABELS, 4, Partition.parse(text), seed) for seed in (1, 2))
    assert any(not np.array_equal(mine, yours) for mine, yours in zip(one, other, strict=True))


def test_iid_parts_differ_by_one_image_at_most() -> None:
    assert [len(mine) for mine in split_among(LABELS, 7, Partition("iid"), 1)] == [86, 86, 86, 86, 86, 85, 85]


def test_smaller_alpha_gives_less_even_parts() -> None:
    assert unevenness("dirichlet:0.1") > 2 * unevenness("dirichlet:10") > 2 * unevenness("dirichlet:1000")


def unevenness(text: str) -> float:
    """Mean over the clients of the distance between a client's class shares and a tenth each."""
    shares = [np.bincount(LABELS[mine], minlength=10) / len(mine) for mine in parts(text) if len(mine)]
    return float(np.mean([np.abs(share - 0.1).sum() for share in shares]))


def parts(text: str) -> list[npt.NDArray[np.intp]]:
    return split_among(LABELS, 6, Partition.parse(text), 3)


@pytest.mark.parametrize("each", [1, 2, 3])
def test_shard_holds_at_most_two_classes(each: int) -> None:
    for mine in split_among(LABELS, 10, Partition("shards", shards=each), 1):
        assert len(np.unique(LABELS[mine])) <= 2 * each


@pytest.mark.parametrize(
    "text",
    [
        "",
        "IID",
        "iid:1",
        "dirichlet",
        "dirichlet:",
        "dirichlet:x",
        "shards",
        "shards:0",
        "shards:1.5",
        "even",
    ],
)
def test_unknown_partition_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a partition as iid, dirichlet:ALPHA such as"):
        Partition.parse(text)


@pytest.mark.parametrize("alpha", ["0", "-0.5", "nan", "inf", "1e9"])
def test_alpha_out_of_range_is_refused(alpha: str) -> None:
    with pytest.raises(ConfigError, match=f"expected ALPHA above 0 and at most 1e.06; got {alpha}"):
        Partition.parse(f"dirichlet:{alpha}")


def test_partition_of_too_few_images_is_refused() -> None:
    with pytest.raises(DataError, match="3 training images cannot be dealt to 4 clients: give more"):
        split_among(np.arange(3), 4, Partition("iid"), 1)
    with pytest.raises(DataError, match="5 training images cannot be dealt to 3 clients with 2 shards"):
        split_among(np.arange(5), 3, Partition("shards", shards=2), 1)


def test_clients_with_too_few_images_or_one_class_are_reported() -> None:
    poor = [np.array([], np.int64), np.array([1]), np.array([2, 2]), np.array([0, 1])]
    lines = partition_warnings(poor, ["a", "b", "c", "d"], ["cat", "dog", "owl"])
    assert lines == [
        "a has no images: it takes no part",
        "b has a single image: it takes no part",
        "c has images of one class only, 'owl': it trains, and its exit will know nothing else",
    ]
