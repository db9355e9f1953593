# SPDX-License-Identifier: Apache-2.0
"""Files that move between folders and never take another file's place; a kill in between loses none."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from splitee.durable import write_atomically

BLOCK = 1 << 20  # bytes that are compared at a time


def move_file(source: Path, target: Path) -> None:
    """Moves a file to a name that nothing has; durable once both folders are synchronised.

    Within a file system it is renamed, else copied, synchronised and then removed. An empty file holds the
    new name meanwhile, for a rename alone would replace what another process has just put there.

    Raises:
        FileExistsError: something has the name.
        OSError: it cannot be moved, and is where it was.
        StateError: it cannot be copied, and is where it was.
    """
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
    try:
        _rename_or_copy(source, target)
    except BaseException:
        with suppress(OSError):
            if _is_there(source) or not target.lstat().st_size:
                target.unlink()
        raise


def finish_move(source: Path, target: Path) -> None:
    """What `move_file` left undone when its process was killed; nothing where it was done.

    Raises:
        FileNotFoundError: neither is there.
        OSError, StateError: as `move_file`.
    """
    if not _is_there(target) or not target.lstat().st_size:
        target.unlink(missing_ok=True)  # it only held the name
        move_file(source, target)
    elif _is_there(source) and _are_equal(source, target):
        source.unlink()  # the copy was whole


def free_name(path: Path) -> Path:
    """`path`, or where something has that name the first of NAME-2, NAME-3, ... that is free."""
    if not _is_there(path):
        return path
    number = 2
    while _is_there(numbered := path.with_name(f"{path.stem[:200]}-{number}{path.suffix}")):
        number += 1
    return numbered


def open_regular(path: Path) -> BinaryIO:
    """A regular file, not followed to where a link leads. Raises OSError: it is none."""
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "no regular file", str(path))
    return file


def _rename_or_copy(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy(source, target)
        source.unlink()


def _copy(source: Path, target: Path) -> None:
    with open_regular(source) as file:
        status = os.fstat(file.fileno())
        write_atomically(
            target, lambda written: shutil.copyfileobj(file, written), mode=stat.S_IMODE(status.st_mode)
        )
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _is_there(path: Path) -> bool:
    return os.path.lexists(path)


def _are_equal(one: Path, other: Path) -> bool:
    with open_regular(one) as first, open_regular(other) as second:
        if os.fstat(first.fileno()).st_size != os.fstat(second.fileno()).st_size:
            return False
        while block := first.read(BLOCK):
            if block != second.read(BLOCK):
                return False
        return True
