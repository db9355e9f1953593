# SPDX-License-Identifier: Apache-2.0
"""Facts of a device, from trees of /proc and /sys as a Raspberry Pi and a container show them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from splitee_device.machine.hardware import (
    Fact,
    available_memory,
    facts,
    throttled,
    usable_cores,
    usable_threads,
)

KIB = 1024
PI = {
    "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\x00",
    "proc/cpuinfo": (
        "processor\t: 0\nBogoMIPS\t: 108.00\n"
        "Features\t: fp asimd evtstrm crc32 cpuid\n"
        "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd08\n"
    ),
    "proc/meminfo": "MemTotal: 3884096 kB\nMemAvailable: 3000000 kB\nSwapTotal: 102396 kB\nSwapFree: 0 kB\n",
    "proc/loadavg": "0.52 0.58 0.59 1/300 1000\n",
    "sys/devices/system/cpu/online": "0-3\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "600000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "1500000\n",
    "sys/class/thermal/thermal_zone0/temp": "61335\n",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
}


def lay_out(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_facts_describe_a_raspberry_pi(tmp_path: Path) -> None:
    found = facts(lay_out(tmp_path, PI), observe=0)
    values = {name: fact.value for name, fact in found.items()}
    assert values["model"] == "Raspberry Pi 4 Model B Rev 1.4"
    assert values["cpu"] == "Cortex-A72"
    assert values["features"] == ("asimd",)  # without asimddp: no dot products on this core
    assert values["cores"] == 4
    assert (values["frequency_mhz"], values["frequency_max_mhz"]) == (600, 1500)
    assert found["temperature_c"] == Fact(61.335, "/sys/class/thermal/thermal_zone0/temp")
    assert values["throttled"] == (
        "under-voltage",
        "throttled",
        "under-voltage since boot",
        "throttled since boot",
    )
    assert (values["memory_available"], values["swap_total"], values["swap_free"]) == (
        3000000 * KIB,
        102396 * KIB,
        0,
    )


def test_missing_facts_are_none_and_name_their_source(tmp_path: Path) -> None:
    found = facts(tmp_path, observe=0)
    of_the_system = {"architecture", "cores_allowed", "busy_cores_of_others"}
    assert {name for name, fact in found.items() if fact.value is not None} == of_the_system
    assert all(fact.source for fact in found.values())


def test_available_memory_is_the_lower_of_system_and_control_group(tmp_path: Path) -> None:
    group = {
        "proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": f"{500 << 20}\n",
        "sys/fs/cgroup/memory.current": f"{100 << 20}\n",
    }
    assert available_memory(lay_out(tmp_path, PI)).available == 3000000 * KIB
    limited = available_memory(lay_out(tmp_path, group))
    assert (limited.available, limited.source) == (400 << 20, "/sys/fs/cgroup/memory.max")


@pytest.mark.parametrize(("quota", "cores", "threads"), [("max", None, None), ("25000", 0.25, 1)])
def test_cpu_quota_limits_cores_and_threads(
    tmp_path: Path, quota: str, cores: float | None, threads: int | None
) -> None:
    lay_out(
        tmp_path,
        {
            "proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/cpu.max": f"{quota} 100000\n",
        },
    )
    allowed = len(os.sched_getaffinity(0))
    assert usable_cores(tmp_path) == (cores or allowed)
    assert usable_threads(tmp_path) == (threads or allowed)


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("throttled=0x0\n", ("none",)),
        ("throttled=0x2\n", ("frequency capped",)),
        ("throttled=0x80000\n", ("soft temperature limit since boot",)),
        ("VCHI initialization failed\n", None),
        (None, None),
    ],
)
def test_throttling_is_read_from_the_firmware_if_sysfs_has_none(
    tmp_path: Path, reply: str | None, value: tuple[str, ...] | None
) -> None:
    assert throttled(tmp_path, lambda: reply) == Fact(value, "vcgencmd get_throttled")
