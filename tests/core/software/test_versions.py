# SPDX-License-Identifier: Apache-2.0
"""The order of versions."""

from __future__ import annotations

import itertools

import pytest

from splitee.software.versions import is_newer, version_key

ORDERED = (
    "0.1.0",
    "0.2.dev3",
    "0.2a1",
    "0.2b1",
    "0.2rc1",
    "0.2rc2",
    "0.2.0",
    "0.2.1",
    "0.10",
    "1.0",
    "1.0.0.1",
)


def test_later_version_is_newer() -> None:
    for older, newer in itertools.combinations(ORDERED, 2):
        assert is_newer(newer, older)
        assert not is_newer(older, newer)


def test_trailing_zeros_do_not_change_a_version() -> None:
    assert version_key("1.2.0") == version_key("1.2")
    assert not is_newer("1.2.0", "1.2")


@pytest.mark.parametrize("text", ["", "next", "1.2-3", "1.2+local", "1.2.post1", "1.2\n", "v1.2", "٣.1"])
def test_invalid_version_is_older_than_a_valid_one(text: str) -> None:
    assert version_key(text) is None
    assert not is_newer(text, "0.1")
    assert is_newer("0.1", text)
