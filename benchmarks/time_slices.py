# SPDX-License-Identifier: Apache-2.0
"""Long time slices, for processes that share cores here and have one each in a real fleet.

A slice is usually a few milliseconds. Processes that train beside each other on one core then switch
thousands of times a minute, and after each switch their weights come from memory again, not from a cache.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

import click

SLICE = 0.1  # seconds, the most that the kernel grants
SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}  # numbers of the system call, for which glibc has no function


def take_long_slices() -> None:
    """Have this process, and those that it starts, keep a core for up to SLICE while others want it.

    A kernel that does not let processes choose (before Linux 6.12) is told of in one line.
    """
    size, policy, runtime = 48, os.SCHED_BATCH, int(SLICE * 1e9)
    attributes = struct.pack("IIQiIQQQ", size, policy, 0, 0, 0, runtime, 0, 0)
    number = SCHED_SETATTR.get(platform.machine())
    libc = ctypes.CDLL(None, use_errno=True)
    if number is None or libc.syscall(number, 0, attributes, 0):
        click.echo("time slices stay as short as the kernel has them", err=True)
