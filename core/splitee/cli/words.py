# SPDX-License-Identifier: Apache-2.0
"""Numbers with units for people: shares, sizes, times, rates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from splitee.statistics import share_interval

MIB = 1 << 20  # bytes

_BYTES = (("GB", 1e9), ("MB", 1e6), ("KB", 1e3), ("B", 1.0))
_MACS = (("PMAC", 1e15), ("TMAC", 1e12), ("GMAC", 1e9), ("MMAC", 1e6))


def percent(fraction: float | None, unknown: str = "-") -> str:
    """0.75 as "75.0 %"; `unknown` for None."""
    return unknown if fraction is None else f"{100 * fraction:.1f} %"


def images(count: int) -> str:
    """How many: "1,000 images"."""
    return f"{count:,} image" if count == 1 else f"{count:,} images"


def interval(share: float, count: int) -> str:
    """The 95 % interval of a share of `count` images, in per cent: "79.0 to 86.4"."""
    low, high = share_interval(share, count)
    return f"{100 * low:.1f} to {100 * high:.1f}"


def devices(count: int) -> str:
    """How many: "1 device"."""
    return f"{count:,} device" if count == 1 else f"{count:,} devices"


def share_of(share: float | None, count: int, unknown: str = "-") -> str:
    """A share of `count` images with its 95 % interval: "83.0 % (79.0 to 86.4, 400 images)"."""
    if share is None or not count:
        return unknown
    return f"{percent(share)} ({interval(share, count)}, {images(count)})"


def from_to(values: Iterable[float], shown: Callable[[float], str]) -> str:
    """The smallest and the largest of one or more: "2.3 to 2.5", or "2.3" if both look alike."""
    known = sorted(values)
    low, high = shown(known[0]), shown(known[-1])
    return low if low == high else f"{low} to {high}"


def size(count: float) -> str:
    """Bytes in decimal units: "2.5 MB"."""
    return f"{count:.0f} B" if count < 1e3 else _scaled(count, _BYTES)


def part_of(count: float, whole: float) -> str:
    """Bytes of more bytes, in the unit of those: "1.2 of 4.0 MB"."""
    name, length = next((unit for unit in _BYTES if whole >= unit[1]), _BYTES[-1])
    digits = 1 if length > 1 else 0
    return f"{count / length:.{digits}f} of {whole / length:.{digits}f} {name}"


def megabytes(count: float) -> str:
    """Bytes as a number of MB, for columns of them: "2.5"."""
    return f"{count / 1e6:.1f}"


def mib(count: float) -> str:
    """Bytes of memory: "1,536 MiB"."""
    return f"{count / MIB:,.0f} MiB"


def macs(count: float) -> str:
    """Multiply-accumulates: "1.8 GMAC"."""
    return _scaled(count, _MACS)


def three_digits(value: float) -> str:
    """At least three significant digits, without an exponent for large values: "0.123", "45.6", "1,234"."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def milliseconds(seconds: float) -> str:
    """A short time in milliseconds: "12.3 ms"."""
    return f"{three_digits(1000 * seconds)} ms"


def bit_rate(bytes_per_second: float) -> str:
    """A link's speed: "93.1 Mbit/s"."""
    return f"{three_digits(8 * bytes_per_second / 1e6)} Mbit/s"


def span(seconds: float) -> str:
    """How long something took: "1 min 15 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def ago(seconds: float) -> str:
    """How long ago: 3 s, 5 min, 2 h, 4 d; clocks that differ never give a negative one."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _scaled(count: float, units: Sequence[tuple[str, float]]) -> str:
    """In the largest unit that is not larger than `count`, or in the smallest."""
    name, length = next((unit for unit in units if count >= unit[1]), units[-1])
    return f"{count / length:.1f} {name}"
