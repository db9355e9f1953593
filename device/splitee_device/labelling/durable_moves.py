# SPDX-License-Identifier: Apache-2.0
"""Moves files between folders without replacing another file; a kill in between loses none."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from splitee.durable import write_atomically

BLOCK = 1 << 20  # bytes compared at a time


def move_file(source: Path, target: Path) -> None:
    """Moves a file to a free name; durable once both folders are synchronised.

    Within a file system the file is renamed; otherwise it is copied, synchronised and then removed. An empty
    file holds the new name meanwhile, because a rename alone would replace another process's new file.

    Raises:
        FileExistsError: the name is taken.
        OSError: it cannot be moved, and stays where it was.
        StateError: it cannot be copied, and stays where it was.
    """
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
    try:
        _rename_or_copy(source, target)
    except BaseException:
        with suppress(OSError):
            if _is_there(source) or not target.lstat().st_size:
                target.unlink()
        raise


def finish_move(source: Path, target: Path, *, is_original: bool = True) -> None:
    """Completes a `move_file` whose process was killed; does nothing if it was complete.

    Args:
        is_original: whether a file at `source` is the one that was to be moved; another stays where it is.

    Raises:
        FileNotFoundError: neither file is there.
        OSError, StateError: as `move_file`.
    """
    if not _is_there(target) or not target.lstat().st_size:
        target.unlink(missing_ok=True)  # it only held the name
        if not is_original:
            raise FileNotFoundError(errno.ENOENT, "the image is gone", str(source))
        move_file(source, target)
    elif is_original and _is_there(source) and _are_equal(source, target):
        source.unlink()  # the copy was whole


def free_name(path: Path) -> Path:
    """`path` or, if that name is taken, the first free one of NAME-2, NAME-3, ..."""
    if not _is_there(path):
        return path
    number = 2
    while _is_there(numbered := path.with_name(f"{path.stem[:200]}-{number}{path.suffix}")):
        number += 1
    return numbered


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file without following links. Raises OSError: it is not one."""
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
