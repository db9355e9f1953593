# SPDX-License-Identifier: Apache-2.0
"""What this device is and what it may use: each fact with its source. A missing fact is None, not a guess."""

from __future__ import annotations

import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from splitee_device.machine import cgroup

ROOT = Path("/")
LOAD_SECONDS = 0.5  # over which the load of others is observed
USEFUL = {  # instructions that decide how fast a network trains
    "avx", "avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "f16c", "fma", "sse4_2",
    "asimd", "asimddp", "asimdhp", "bf16", "fphp", "i8mm", "neon", "sve",
}  # fmt: skip
ARM_CORES = {  # by "CPU part" of implementer 0x41, as arch/arm64/include/asm/cputype.h numbers them
    0xD03: "Cortex-A53", 0xD04: "Cortex-A35", 0xD05: "Cortex-A55", 0xD07: "Cortex-A57", 0xD08: "Cortex-A72",
    0xD09: "Cortex-A73", 0xD0A: "Cortex-A75", 0xD0B: "Cortex-A76", 0xD40: "Neoverse-V1", 0xD0C: "Neoverse-N1",
}  # fmt: skip
THROTTLED = {  # bits of get_throttled: now, and 16 higher since boot
    0: "under-voltage",
    1: "frequency capped",
    2: "throttled",
    3: "soft temperature limit",
}

Value = str | int | float | tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """A fact and its source; None: the source does not have it."""

    value: Value | None
    source: str


@dataclass(frozen=True)
class Memory:
    """Bytes that may still be allocated: the smaller of what the system and the control groups leave."""

    available: int | None
    source: str


def facts(root: Path = ROOT, *, observe: float = LOAD_SECONDS) -> dict[str, Fact]:
    """All facts by name. `root`: where /proc and /sys are; `observe`: seconds to watch the load for."""
    memory = available_memory(root)
    return {
        "model": _text(root, "proc/device-tree/model"),
        "cpu": _cpu_model(root),
        "architecture": Fact(platform.machine() or None, "uname"),
        "features": _features(root),
        "cores": _cores(root),
        "cores_allowed": Fact(len(os.sched_getaffinity(0)), "sched_getaffinity"),
        "cpu_quota": _of_group(cgroup.cpu_quota(root), "cgroup: cpu.max, cpu.cfs_quota_us"),
        "frequency_mhz": _khz(root, "scaling_cur_freq"),
        "frequency_max_mhz": _khz(root, "cpuinfo_max_freq"),
        "temperature_c": temperature(root),
        "throttled": throttled(root),
        "load_average": _load_average(root),
        "busy_cores_of_others": load_of_others(observe),
        "memory_total": _meminfo(root, "MemTotal"),
        "memory_limit": _of_group(cgroup.memory_limit(root), "cgroup: memory.max, memory.limit_in_bytes"),
        "memory_available": Fact(memory.available, memory.source),
        "swap_total": _meminfo(root, "SwapTotal"),
        "swap_free": _meminfo(root, "SwapFree"),
    }


def identity(root: Path = ROOT) -> tuple[Value | None, ...]:
    """What distinguishes one machine from another for a measurement: model, CPU, cores, memory."""
    facts = (
        _text(root, "proc/device-tree/model"),
        _cpu_model(root),
        _cores(root),
        _meminfo(root, "MemTotal"),
    )
    return *(fact.value for fact in facts), len(os.sched_getaffinity(0))


def usable_cores(root: Path = ROOT) -> float:
    """Cores that this process may use: its affinity, or its quota if that is less."""
    quota = cgroup.cpu_quota(root)
    allowed = len(os.sched_getaffinity(0))
    return min(allowed, quota.value) if quota else float(allowed)


def usable_threads(root: Path = ROOT) -> int:
    """Threads that training can keep busy. More than the quota allows would only slow each other down."""
    return max(1, math.ceil(usable_cores(root)))


def available_memory(root: Path = ROOT) -> Memory:
    """Memory that may still be allocated: MemAvailable, or what the control groups leave if that is less."""
    system = _meminfo(root, "MemAvailable")
    group = cgroup.memory_left(root)
    left = [(int(system.value), system.source)] if isinstance(system.value, int) else []
    if group is not None:
        left.append((int(group.value), group.source))
    return Memory(*min(left)) if left else Memory(None, system.source)


def memory_for_training(root: Path = ROOT) -> int | None:
    """Bytes that a training process may use in total, if it is this process or starts after its end."""
    available = available_memory(root).available
    own = _field(root / "proc/self/status", "RssAnon")
    return available if available is None or not own else available + 1024 * int(own.split()[0])


def memory_limit(root: Path = ROOT) -> int | None:
    """Bytes that a process may use at most: the limit of its control groups, or the machine's memory."""
    group, machine = cgroup.memory_limit(root), _meminfo(root, "MemTotal").value
    return least(None if group is None else int(group.value), machine if isinstance(machine, int) else None)


def least(*amounts: int | None) -> int | None:
    """The smallest of the known amounts."""
    return min((amount for amount in amounts if amount is not None), default=None)


def temperature(root: Path = ROOT) -> Fact:
    """Degrees Celsius of the hottest thermal zone."""
    zones = []
    for path in sorted((root / "sys/class/thermal").glob("thermal_zone*/temp")):
        text = _read(path)
        if text is not None and re.fullmatch(r"-?[0-9]+", text):
            zones.append((int(text) / 1000, str(path.parent.name)))
    if not zones:
        return Fact(None, "/sys/class/thermal/thermal_zone*/temp")
    hottest, zone = max(zones)
    return Fact(hottest, f"/sys/class/thermal/{zone}/temp")


def throttled(root: Path = ROOT, query: Callable[[], str | None] | None = None) -> Fact:
    """What the Raspberry Pi's firmware limits, now or since boot; ("none",): nothing.

    `query` gives the output of `vcgencmd get_throttled`, or None if there is no such program.
    """
    path = "sys/devices/platform/soc/soc:firmware/get_throttled"
    text, source = _read(root / path), f"/{path}"
    if text is None:
        output, source = (query or _query_firmware)(), "vcgencmd get_throttled"
        text = output.strip().removeprefix("throttled=") if output else None
    if text is None or not re.fullmatch(r"(0x)?[0-9a-fA-F]+", text):
        return Fact(None, source)
    bits = int(text, 16)
    now = [name for bit, name in THROTTLED.items() if bits >> bit & 1]
    before = [f"{name} since boot" for bit, name in THROTTLED.items() if bits >> bit + 16 & 1]
    return Fact((*now, *before) or ("none",), source)


def throttled_now(value: Value | None) -> tuple[str, ...]:
    """Those limits in a value of `throttled` that apply at this moment."""
    limits = value if isinstance(value, tuple) else ()
    return tuple(name for name in limits if name in THROTTLED.values())


class Load:
    """The load of the machine since this object was made."""

    def __init__(self) -> None:
        self._busy, self._started = _busy(psutil.cpu_times()), time.monotonic()
        self._own = time.process_time()

    def of_others(self) -> float:
        """Cores that other processes have kept busy."""
        busy = _busy(psutil.cpu_times()) - self._busy - (time.process_time() - self._own)
        return max(busy, 0.0) / max(time.monotonic() - self._started, 1e-3)


def load_of_others(seconds: float) -> Fact:
    """Cores that other processes keep busy, over `seconds` in which this one sleeps."""
    load = Load()
    time.sleep(seconds)
    return Fact(round(load.of_others(), 2), "/proc/stat")


def _busy(times: object) -> float:
    return float(
        sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal"))
    )


def _query_firmware() -> str | None:
    try:
        done = subprocess.run(
            ["vcgencmd", "get_throttled"], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _cpu_model(root: Path) -> Fact:
    path = root / "proc/cpuinfo"
    name = _field(path, "model name")
    part, implementer = _field(path, "CPU part"), _field(path, "CPU implementer")
    if name is None and part is not None and implementer is not None and int(implementer, 16) == 0x41:
        name = ARM_CORES.get(int(part, 16), f"Arm part {part}")
    return Fact(name, "/proc/cpuinfo")


def _features(root: Path) -> Fact:
    path = root / "proc/cpuinfo"
    text = _field(path, "flags") or _field(path, "Features")
    found = None if text is None else tuple(sorted(USEFUL & set(text.split())))
    return Fact(found, "/proc/cpuinfo")


def _cores(root: Path) -> Fact:
    """Cores that are online, from a list such as 0-3,5."""
    path = "sys/devices/system/cpu/online"
    text = _read(root / path) or ""
    ranges = [re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", part) for part in text.split(",")]
    count = sum(int(found[2] or found[1]) - int(found[1]) + 1 for found in ranges if found)
    return Fact(count or None, f"/{path}")


def _khz(root: Path, name: str) -> Fact:
    path = f"sys/devices/system/cpu/cpu0/cpufreq/{name}"
    text = _read(root / path) or ""
    return Fact(int(text) // 1000 if text.isdecimal() else None, f"/{path}")


def _load_average(root: Path) -> Fact:
    text = _read(root / "proc/loadavg") or ""
    first = text.partition(" ")[0]
    return Fact(float(first) if re.fullmatch(r"[0-9]+\.[0-9]+", first) else None, "/proc/loadavg")


def _meminfo(root: Path, name: str) -> Fact:
    text = _field(root / "proc/meminfo", name) or ""
    number = text.partition(" ")[0]
    return Fact(1024 * int(number) if number.isdecimal() else None, f"/proc/meminfo {name}")


def _of_group(limit: cgroup.Limit | None, sought: str) -> Fact:
    return Fact(None, sought) if limit is None else Fact(limit.value, limit.source)


def _text(root: Path, path: str) -> Fact:
    return Fact(_read(root / path) or None, f"/{path}")


def _field(path: Path, name: str) -> str | None:
    """The first `name : value` line's value."""
    for line in (_read(path) or "").splitlines():
        key, colon, value = line.partition(":")
        if colon and key.strip() == name:
            return value.strip()
    return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip("\x00\n ")
    except OSError:
        return None
