# SPDX-License-Identifier: Apache-2.0
"""Long time slices for processes that share cores in a benchmark, but have one each in a real fleet.

A slice is usually a few milliseconds. Processes that train on one core then switch thousands of times a
minute, and after each switch their weights must be read from memory again, not from a cache.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

import click

SLICE = 0.1  # seconds, the most that the kernel allows
SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}  # number of the system call, for which glibc has no function


def take_long_slices() -> None:
    """Set the time slice of this process, and of those that it starts, to SLICE.

    Prints a line if the kernel does not support this (before Linux 6.12).
    """
    size, policy, runtime = 48, os.SCHED_BATCH, int(SLICE * 1e9)
    attributes = struct.pack("IIQiIQQQ", size, policy, 0, 0, 0, runtime, 0, 0)
    number = SCHED_SETATTR.get(platform.machine())
    libc = ctypes.CDLL(None, use_errno=True)
    if number is None or libc.syscall(number, 0, attributes, 0):
        click.echo("the kernel does not support longer time slices", err=True)
