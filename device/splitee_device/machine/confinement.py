# SPDX-License-Identifier: Apache-2.0
"""Restricts a process before it reads hostile input. The restrictions cannot be undone."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import resource
import signal
from pathlib import Path

from splitee_device.machine.memory import address_space

MAX_OUTPUT = 64 << 10  # bytes that it may write to any file
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38  # linux/prctl.h
NOBODY = "nobody"


def confine(*, memory: int, seconds: int) -> None:
    """From now on this process opens no file and no socket, gains no privilege, and ends with its parent.

    Open files stay open. A process of root becomes one of nobody.

    Args:
        memory: bytes that it may map beyond those it has mapped by now.
        seconds: of CPU time in total.

    Raises OSError: the system refuses one of these.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((PR_SET_PDEATHSIG, signal.SIGKILL), (PR_SET_NO_NEW_PRIVS, 1)):
        if libc.prctl(option, int(value), 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")
    with contextlib.suppress(OSError):  # the first to be killed when the machine runs out of memory
        Path("/proc/self/oom_score_adj").write_text("1000")
    mapped = address_space()
    if os.geteuid() == 0:
        _become_nobody()
        libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)  # cleared by the change of user id
    for limit, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, MAX_OUTPUT),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, mapped + memory),
        (resource.RLIMIT_NOFILE, 0),
    ):
        _, ceiling = resource.getrlimit(limit)
        allowed = most if ceiling == resource.RLIM_INFINITY else min(most, ceiling)
        resource.setrlimit(limit, (allowed, allowed))


def _become_nobody() -> None:
    nobody = pwd.getpwnam(NOBODY)
    os.setgroups([])
    os.setresgid(nobody.pw_gid, nobody.pw_gid, nobody.pw_gid)
    os.setresuid(nobody.pw_uid, nobody.pw_uid, nobody.pw_uid)
