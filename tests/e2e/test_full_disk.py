# SPDX-License-Identifier: Apache-2.0
"""A disk that is really full: one line, exit 10, and the run goes on from its last commit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fleets import CUTS, Fleet, await_message, in_one_process

from splitee.errors import ExitCode
from splitee.mqtt.link import Link
from splitee.protocol.rounds import Commit
from splitee.protocol.topics import Topics
from splitee_lab.local.brokers import RunningBroker

SIZE = "4m"
ROUNDS = 4
SMALL_DISK = ("unshare", "--map-root-user", "--mount", "sh", "-ec")
MOUNT = 'mkdir -p "$0"; mount -t tmpfs -o size=$1 tmpfs "$0"; shift; exec "$@"'


def on_small_disk(path: Path, *command: str) -> tuple[str, ...]:
    """`command`, for which a disk of SIZE is at `path`; it is gone with the process."""
    return *SMALL_DISK, MOUNT, str(path), SIZE, *command


@contextmanager
def disk_of(pid: int, path: Path) -> Iterator[Path]:
    """The folder that the process has at `path`, also when it has ended."""
    descriptor = os.open(f"/proc/{pid}/root{path}", os.O_RDONLY)
    try:
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def fill(disk: Path) -> None:
    """Write until the disk is full."""
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            assert error.strerror == "No space left on device"


@pytest.fixture(autouse=True)
def small_disks(tmp_path: Path) -> None:
    command = on_small_disk(tmp_path / "disk", "true")
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")


@pytest.mark.slow(10)
@pytest.mark.mosquitto
@pytest.mark.parametrize("victim", ["server", "pi-2"])
def test_full_disk_ends_one_process_and_leaves_the_weights_unchanged(
    mosquitto_broker: RunningBroker, tmp_path: Path, victim: str
) -> None:
    topics, state = Topics(f"full-{victim}"), tmp_path / victim
    watcher = Link(mosquitto_broker.address, f"full-{victim}")
    watcher.subscribe(topics.commit)
    watcher.open(5)
    program = on_small_disk(state, sys.executable, "-m", "splitee")
    with Fleet(str(mosquitto_broker.address), topics.fleet, tmp_path) as fleet:
        fleet.server("--steps", "20", rounds=ROUNDS, program=program if victim == "server" else ())
        for number, (name, cut) in enumerate(CUTS.items(), start=1):
            fleet.device(name, cut, shard=f"{number}/3", program=program if victim == name else ())
        await_message(watcher, topics.commit, lambda payload: Commit.decode(payload).round >= 1)
        with disk_of(fleet.processes[victim].pid, state) as disk:
            fill(disk)
            assert fleet.wait(victim) == [ExitCode.STATE]
            (disk / "filler").unlink()
            shutil.copytree(disk, state, dirs_exist_ok=True)
        *_, last = fleet.log(victim).splitlines()
        assert "No space left on device; free space or choose another directory" in last
        assert "Traceback" not in fleet.log(victim)
        if victim == "server":
            fleet.server("--steps", "20", rounds=ROUNDS)
        else:
            fleet.device(victim, CUTS[victim], shard="2/3")
        assert fleet.wait() == [0, 0, 0, 0]
        report = fleet.report()
    watcher.close()
    assert report["weights_sha256"] == in_one_process("sequential", "step", ROUNDS, steps=20)
