# SPDX-License-Identifier: Apache-2.0
"""Figures in words, at the edges of their units."""

from __future__ import annotations

import pytest

from splitee.cli.words import (
    ago,
    bit_rate,
    from_to,
    images,
    macs,
    megabytes,
    mib,
    milliseconds,
    percent,
    share_of,
    size,
    span,
)


def test_share_is_shown_in_percent_or_as_missing() -> None:
    assert percent(0.75) == "75.0 %"
    assert (percent(None), percent(None, "")) == ("-", "")


def test_range_is_one_figure_if_its_ends_are_shown_alike() -> None:
    assert from_to([0.814, 0.3338, 0.57], percent) == "33.4 % to 81.4 %"
    assert from_to([0.8101, 0.8099], percent) == "81.0 %"
    assert from_to([2.5], str) == "2.5"


def test_share_is_shown_with_its_interval_and_number_of_images() -> None:
    assert share_of(0.83, 400) == "83.0 % (79.0 to 86.4, 400 images)"
    assert share_of(0.0, 1) == "0.0 % (0.0 to 79.3, 1 image)"
    assert (share_of(None, 400), share_of(0.5, 0, "none")) == ("-", "none")
    assert [images(count) for count in (0, 1, 1234)] == ["0 images", "1 image", "1,234 images"]


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (2.5e6, "2.5 MB"), (3e9, "3.0 GB")]
)
def test_byte_count_is_shown_in_a_fitting_unit(count: float, shown: str) -> None:
    assert size(count) == shown


def test_megabytes_and_mebibytes_are_shown_in_fixed_units() -> None:
    assert megabytes(12_345_678) == "12.3"
    assert mib(1536 << 20) == "1,536 MiB"


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0.0 MMAC"), (2.5e8, "250.0 MMAC"), (1.8e9, "1.8 GMAC"), (4e15, "4.0 PMAC")]
)
def test_multiply_accumulates_are_shown_in_a_fitting_unit(count: float, shown: str) -> None:
    assert macs(count) == shown


def test_milliseconds_and_bit_rates_have_at_least_three_digits() -> None:
    assert (milliseconds(0.012345), milliseconds(0.9876)) == ("12.3 ms", "988 ms")
    assert milliseconds(16.79) == "16,790 ms"
    assert (bit_rate(11_640_000), bit_rate(537_500_000)) == ("93.1 Mbit/s", "4,300 Mbit/s")


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (75, "1 min 15 s")])
def test_duration_is_shown_in_minutes_and_seconds(seconds: float, shown: str) -> None:
    assert span(seconds) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-5, "0 s"), (3.4, "3 s"), (119, "119 s"), (120, "2 min"), (7300, "2 h"), (400_000, "5 d")],
)
def test_age_is_shown_in_one_unit_from_seconds_to_days(seconds: float, shown: str) -> None:
    assert ago(seconds) == shown
