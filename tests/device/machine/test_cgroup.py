# SPDX-License-Identifier: Apache-2.0
"""Limits of control groups, read from directory trees as kernels lay them out."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitee_device.machine.cgroup import cpu_quota, memory_left, memory_limit

MIB = 1 << 20
V1_MOUNTS = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
36 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
V2_MOUNTS = "30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw\n"


def tree(root: Path, mounts: str, groups: str, files: dict[str, object]) -> Path:
    for name, content in {"proc/self/mountinfo": mounts, "proc/self/cgroup": groups, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def test_limits_are_none_without_control_groups(tmp_path: Path) -> None:
    assert (memory_limit(tmp_path), memory_left(tmp_path), cpu_quota(tmp_path)) == (None, None, None)


def test_v2_limit_is_the_lowest_of_all_ancestors(tmp_path: Path) -> None:
    base = "sys/fs/cgroup/system.slice"
    root = tree(
        tmp_path,
        V2_MOUNTS,
        "0::/system.slice/splitee.service",
        {
            f"{base}/memory.max": 512 * MIB,
            f"{base}/memory.current": 100 * MIB,
            f"{base}/splitee.service/memory.max": "max",
            f"{base}/cpu.max": "max 100000",
            f"{base}/splitee.service/cpu.max": "50000 100000",
        },
    )
    limit, quota = memory_limit(root), cpu_quota(root)
    assert limit is not None and quota is not None
    assert (limit.value, limit.source) == (512 * MIB, "/sys/fs/cgroup/system.slice/memory.max")
    assert (quota.value, quota.source) == (0.5, f"/{base}/splitee.service/cpu.max")


def test_v2_memory_high_counts_as_a_limit(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/a/memory.max": 512 * MIB, "sys/fs/cgroup/a/memory.high": 400 * MIB}
    limit = memory_limit(tree(tmp_path, V2_MOUNTS, "0::/a", dict(files)))
    assert limit is not None
    assert (limit.value, limit.source) == (400 * MIB, "/sys/fs/cgroup/a/memory.high")


def test_inactive_page_cache_counts_as_memory_left(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        V2_MOUNTS,
        "0::/a",
        {
            "sys/fs/cgroup/a/memory.max": 512 * MIB,
            "sys/fs/cgroup/a/memory.current": 200 * MIB,
            "sys/fs/cgroup/a/memory.stat": f"anon 1\ninactive_file {50 * MIB}\nactive_file {9 * MIB}",
        },
    )
    left = memory_left(root)
    assert left is not None
    assert left.value == (512 - 200 + 50) * MIB


def test_full_parent_group_reduces_the_memory_left(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        V2_MOUNTS,
        "0::/a/b",
        {
            "sys/fs/cgroup/a/memory.max": 1024 * MIB,
            "sys/fs/cgroup/a/memory.current": 1000 * MIB,
            "sys/fs/cgroup/a/b/memory.max": 512 * MIB,
            "sys/fs/cgroup/a/b/memory.current": 10 * MIB,
        },
    )
    limit, left = memory_limit(root), memory_left(root)
    assert limit is not None and left is not None
    assert (limit.value, left.value) == (512 * MIB, 24 * MIB)


def test_v1_limits_are_read_from_each_controller(tmp_path: Path) -> None:
    unlimited = 9223372036854771712
    root = tree(
        tmp_path,
        V1_MOUNTS,
        "4:memory:/pis/pi3\n2:cpu,cpuacct:/pi3\n0::/",
        {
            "sys/fs/cgroup/memory/memory.limit_in_bytes": unlimited,
            "sys/fs/cgroup/memory/pis/memory.limit_in_bytes": unlimited,
            "sys/fs/cgroup/memory/pis/pi3/memory.limit_in_bytes": 1024 * MIB,
            "sys/fs/cgroup/memory/pis/pi3/memory.usage_in_bytes": 300 * MIB,
            "sys/fs/cgroup/memory/pis/pi3/memory.stat": f"total_inactive_file {100 * MIB}",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": -1,
            "sys/fs/cgroup/cpu,cpuacct/pi3/cpu.cfs_quota_us": 25000,
            "sys/fs/cgroup/cpu,cpuacct/pi3/cpu.cfs_period_us": 100000,
        },
    )
    limit, left, quota = memory_limit(root), memory_left(root), cpu_quota(root)
    assert limit is not None and left is not None and quota is not None
    assert (limit.value, left.value, quota.value) == (1024 * MIB, 824 * MIB, 0.25)
    assert quota.source == "/sys/fs/cgroup/cpu,cpuacct/pi3/cpu.cfs_quota_us"


@pytest.mark.parametrize(
    ("mounted", "group"),
    [
        ("/docker/0123abcd", "/docker/0123abcd"),  # the host's path, with the container's group mounted
        ("/", "/"),  # a namespace of its own
        ("/", "/../../user.slice"),  # a group outside of the namespace
        ("/kubepods/pod1", "/elsewhere"),
    ],
)
def test_container_limit_is_read_from_its_mounted_group(tmp_path: Path, mounted: str, group: str) -> None:
    mounts = f"36 31 0:32 {mounted} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    root = tree(
        tmp_path,
        mounts,
        f"4:memory:{group}",
        {"sys/fs/cgroup/memory/memory.limit_in_bytes": 256 * MIB},
    )
    limit = memory_limit(root)
    assert limit is not None
    assert limit.value == 256 * MIB


def test_mount_point_with_blanks_is_found(tmp_path: Path) -> None:
    mounts = "30 23 0:26 / /mnt/control\\040groups rw - cgroup2 cgroup2 rw\n"
    root = tree(tmp_path, mounts, "0::/", {"mnt/control groups/cpu.max": "150000 100000"})
    quota = cpu_quota(root)
    assert quota is not None
    assert quota.value == 1.5


@pytest.mark.parametrize("content", ["", "max", "none 100000", "-1", "\x00"])
def test_limits_without_a_number_are_ignored(tmp_path: Path, content: str) -> None:
    files = {"sys/fs/cgroup/cpu.max": content, "sys/fs/cgroup/memory.max": content}
    root = tree(tmp_path, V2_MOUNTS, "0::/", dict(files))
    assert (cpu_quota(root), memory_limit(root)) == (None, None)


def test_zero_period_gives_no_cpu_quota(tmp_path: Path) -> None:
    assert cpu_quota(tree(tmp_path, V2_MOUNTS, "0::/", {"sys/fs/cgroup/cpu.max": "50000 0"})) is None
