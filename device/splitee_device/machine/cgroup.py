# SPDX-License-Identifier: Apache-2.0
"""What control groups allow this process: memory and CPU of every group above it, v1 and v2."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NO_LIMIT = 1 << 60  # v1 writes the largest multiple of a page instead of "max"


@dataclass(frozen=True)
class Limit:
    """One limit, in bytes or in cores, and the file that sets it."""

    value: float
    source: str


@dataclass(frozen=True)
class _Files:
    """The names of the same files and fields in one of the two versions."""

    limits: tuple[str, ...]
    used: str
    reclaimable: str  # in memory.stat


_MEMORY = {
    1: _Files(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file"),
    2: _Files(("memory.max", "memory.high"), "memory.current", "inactive_file"),
}


def folders(controller: str, version: int, root: Path = Path("/")) -> list[Path]:
    """This process's group and all groups above it, as far as they are visible from here."""
    return list(_groups(root, controller, version))


def memory_limit(root: Path = Path("/")) -> Limit | None:
    """The smallest memory limit of the groups, in bytes; None: no limit. `root`: of /proc and /sys."""
    limits = [limit for _, limit in _memory_limits(root)]
    return min(limits, key=lambda limit: limit.value, default=None)


def memory_left(root: Path = Path("/")) -> Limit | None:
    """Bytes that may still be allocated before a group's limit; page cache that can be freed is free."""
    left = []
    for version, limit in _memory_limits(root):
        folder, files = _under(root, limit.source).parent, _MEMORY[version]
        used = _number(folder / files.used)
        if used is not None:
            cache = _entry(folder / "memory.stat", files.reclaimable) or 0
            left.append(Limit(max(limit.value - used + min(cache, used), 0), limit.source))
    return min(left, key=lambda limit: limit.value, default=None)


def cpu_quota(root: Path = Path("/")) -> Limit | None:
    """The smallest CPU quota of the groups, in cores; None: no quota."""
    quotas = []
    for folder in _groups(root, "cpu", 2):
        words = _words(folder / "cpu.max")
        if len(words) == 2 and words[0].isdecimal() and words[1].isdecimal() and int(words[1]):
            quotas.append(Limit(int(words[0]) / int(words[1]), _inside(root, folder / "cpu.max")))
    for folder in _groups(root, "cpu", 1):
        quota, period = (_number(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        if quota and period and quota > 0:
            quotas.append(Limit(quota / period, _inside(root, folder / "cpu.cfs_quota_us")))
    return min(quotas, key=lambda limit: limit.value, default=None)


def _memory_limits(root: Path) -> Iterator[tuple[int, Limit]]:
    for version, files in _MEMORY.items():
        for folder in _groups(root, "memory", version):
            for name in files.limits:
                value = _number(folder / name)
                if value is not None and 0 <= value < NO_LIMIT:
                    yield version, Limit(value, _inside(root, folder / name))


def _groups(root: Path, controller: str, version: int) -> Iterator[Path]:
    """The folders of this process's group and of all above it, as far as they are visible from here."""
    path = _path_of(root, controller, version)
    mount = _mount_of(root, controller, version)
    if path is None or mount is None:
        return
    top, visible = mount
    # A container may see its own group as the top. A path outside of the mounted part means the same.
    below = path.removeprefix(visible.rstrip("/")) if path.startswith(visible) else ""
    parts = [part for part in below.split("/") if part]
    if ".." in parts:
        parts = []
    for depth in range(len(parts), -1, -1):
        yield top.joinpath(*parts[:depth])


def _path_of(root: Path, controller: str, version: int) -> str | None:
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if (version == 2 and number == "0" and not controllers) or (
            version == 1 and controller in controllers.split(",")
        ):
            return path
    return None


def _mount_of(root: Path, controller: str, version: int) -> tuple[Path, str] | None:
    """Where the hierarchy is mounted, and which of its groups that is."""
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        mounted, source = before.split(), after.split()
        if len(mounted) < 5 or len(source) < 3:
            continue
        kind, options = source[0], source[2].split(",")
        if (version == 2 and kind == "cgroup2") or (
            version == 1 and kind == "cgroup" and controller in options
        ):
            return _under(root, _unescape(mounted[4])), _unescape(mounted[3])
    return None


def _unescape(text: str) -> str:
    """The kernel writes blanks in paths as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _under(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def _inside(root: Path, path: Path) -> str:
    return f"/{path.relative_to(root)}"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    return next((line.split() for line in _lines(path)), [])


def _number(path: Path) -> int | None:
    """The file's number; None if the file is missing or says "max"."""
    text = next(iter(_words(path)), "")
    return int(text) if re.fullmatch(r"-?[0-9]+", text) else None


def _entry(path: Path, name: str) -> int | None:
    for line in _lines(path):
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdecimal():
            return int(value)
    return None
