"""Figures in words."""

from __future__ import annotations

import pytest

from splitee.cli.words import mib, percent


def test_a_share_has_one_decimal_and_may_be_unknown() -> None:
    assert (percent(0.8312), percent(None), percent(None, "")) == ("83.1 %", "-", "")


@pytest.mark.parametrize(("count", "words"), [(0, "0 MiB"), (3 << 19, "2 MiB"), (5 << 30, "5,120 MiB")])
def test_memory_is_told_in_whole_mib(count: int, words: str) -> None:
    assert mib(count) == words
