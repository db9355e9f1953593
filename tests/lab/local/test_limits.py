# SPDX-License-Identifier: Apache-2.0
"""A demo's small devices: shares of a core by control groups, a whole core without them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from splitee_lab.local.limits import STEP, CpuShares, device_limits

GROUPS = {
    1: ("30 23 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n", "1:cpu:/own\n", "cpu/own"),
    2: ("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "0::/user.slice/own\n", ""),
}


@pytest.fixture
def sleeper() -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process.pid
    process.kill()
    process.communicate()


@pytest.mark.parametrize("version", GROUPS)
def test_share_of_a_core_is_set_by_a_control_group(tmp_path: Path, version: int, sleeper: int) -> None:
    mounts, own, parent = GROUPS[version]
    for name, content in {"proc/self/mountinfo": mounts, "proc/self/cgroup": own}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    where = tmp_path / "sys/fs/cgroup" / parent
    where.mkdir(parents=True)
    with CpuShares(tmp_path) as shares:
        assert shares.limit(sleeper, 0.3) == 0.3
    (group,) = where.glob("splitee-demo-*")
    written = {file.name: file.read_text() for file in group.iterdir()}
    limit = {1: {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "30000"}, 2: {"cpu.max": "30000 100000"}}
    assert written == {**limit[version], "cgroup.procs": str(sleeper)}
    assert shares.pinned == 0


def test_process_is_pinned_to_one_core_without_control_groups(tmp_path: Path, sleeper: int) -> None:
    with CpuShares(tmp_path) as shares:
        for _ in range(2):
            assert shares.limit(sleeper, 0.3) == 1.0
            assert len(os.sched_getaffinity(sleeper)) == 1
    assert shares.pinned == 2


def test_first_three_devices_differ_and_the_fourth_is_like_the_first() -> None:
    kinds = device_limits(4)
    assert [kind.cpu for kind in kinds] == [1.0, 0.6, 0.3, 1.0]
    assert sorted((kind.memory for kind in kinds[:3]), reverse=True) == [kind.memory for kind in kinds[:3]]
    assert len({kind.memory for kind in kinds}) == 3
    assert all(kind.memory % STEP == 0 for kind in kinds)
