"""Figures as people read them: shares, bytes, times."""

from __future__ import annotations

MIB = 1 << 20


def percent(fraction: float | None, unknown: str = "-") -> str:
    """A share with one decimal, such as `83.1 %`; `unknown` where there is none."""
    return unknown if fraction is None else f"{100 * fraction:.1f} %"


def mib(count: float) -> str:
    """Bytes of memory, in whole MiB with thousands apart."""
    return f"{count / MIB:,.0f} MiB"


def size(count: float) -> str:
    """Bytes that travel, in decimal units."""
    for unit, length in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= length:
            return f"{count / length:.1f} {unit}"
    return f"{count:.0f} B"


def span(seconds: float) -> str:
    """How long something took, in minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def ago(seconds: float) -> str:
    """How long ago: 3 s, 5 min, 2 h, 4 d; clocks that differ never give a negative one."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
