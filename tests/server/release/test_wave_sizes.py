# SPDX-License-Identifier: Apache-2.0
"""The number of devices in each wave, for all counts and percentages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitee.errors import ConfigError
from splitee_server.release.wave_sizes import in_wave_order, read_waves, wave_sizes

AMOUNTS = st.one_of(
    st.integers(1, 300).map(str), st.integers(1, 100).map(lambda share: f"{share}%"), st.just("0.5%")
)


@given(st.lists(AMOUNTS, min_size=1, max_size=6), st.integers(1, 250))
def test_wave_sizes_increase_strictly_or_are_refused(waves: list[str], devices: int) -> None:
    try:
        sizes = wave_sizes(read_waves(",".join(waves)), devices)
    except ConfigError as error:
        assert "wave" in str(error) and "\n" not in str(error)
        return
    assert sizes and all(after > before for before, after in zip((0, *sizes), sizes, strict=False))
    assert sizes[-1] <= devices
    assert waves[-1] != "100%" or sizes[-1] == devices


@pytest.mark.parametrize(
    ("waves", "devices", "sizes"),
    [
        ("1,10%,100%", 20, (1, 2, 20)),
        ("1,10%,100%", 5, (1, 5)),  # 10 % of 5 is the device of the first wave
        ("100%", 1, (1,)),
        ("33.5%", 3, (2,)),
        ("3", 20, (3,)),
    ],
)
def test_percentages_of_waves_are_rounded_up(waves: str, devices: int, sizes: tuple[int, ...]) -> None:
    assert wave_sizes(read_waves(waves), devices) == sizes


@pytest.mark.parametrize(
    ("waves", "reason"),
    [
        ("0", "'0' names no device"),
        ("0%,100%", "'0%' names no device"),
        ("0.0%", "names no device"),
        ("1,,100%", "'' names no device"),
        ("1,101%", "'101%' names no device"),
        ("one", "'one' names no device"),
        ("-1", "names no device"),
        ("1e3", "names no device"),
        (",".join(map(str, range(1, 23))), "22 waves"),
        ("21", "there are only 20 devices"),
        ("5,2", "wave 2 names no device"),
        ("5,5", "wave 5 names no device"),
        ("10%,10%", "wave 10% names no device"),
        ("50%,10%", "wave 10% names no device"),
    ],
)
def test_invalid_wave_is_refused_with_its_reason(waves: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        wave_sizes(read_waves(waves), 20)


@given(st.sets(st.integers(0, 1000).map("pi-{}".format), min_size=1, max_size=30))
def test_wave_order_is_independent_of_the_input_order(devices: set[str]) -> None:
    assert in_wave_order("a", sorted(devices)) == in_wave_order("a", sorted(devices, reverse=True))
    assert set(in_wave_order("a", devices)) == devices


def test_first_device_of_the_wave_order_varies_between_rollouts() -> None:
    devices = [f"pi-{number}" for number in range(20)]
    assert len({in_wave_order(f"release-{number}", devices)[0] for number in range(40)}) > 10
