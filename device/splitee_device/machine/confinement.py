# SPDX-License-Identifier: Apache-2.0
"""What a process gives up before it touches what may be hostile. None of it can be taken back."""

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
    """From here on this process opens no file and no socket, gains no privilege, and ends with its parent.

    What is open stays open. A process of root becomes nobody's.

    Args:
        memory: bytes that it may map beyond those it has mapped by now.
        seconds: of CPU that it may take in all.

    Raises OSError: the system refuses one of these.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((PR_SET_PDEATHSIG, signal.SIGKILL), (PR_SET_NO_NEW_PRIVS, 1)):
        if libc.prctl(option, int(value), 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")
    with contextlib.suppress(OSError):  # the first to go when the machine runs out of memory
        Path("/proc/self/oom_score_adj").write_text("1000")
    mapped = address_space()
    if os.geteuid() == 0:
        _become_nobody()
        libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)  # which another user id has cleared
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
