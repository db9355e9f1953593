# SPDX-License-Identifier: Apache-2.0
"""Memory that the ranks of one machine share: others read there without a copy what one has written."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import torch
from torch import Tensor

ALIGNMENT = 64  # bytes of a cache line


class Written(msgspec.Struct, frozen=True):
    """Where a rank has written.

    Attributes:
        path: of its memory, for other processes of the same user.
        number: of this memory; a later memory of the rank may have the same path.
        size: of the whole memory, in bytes.
    """

    path: str
    number: int
    size: int


class OwnMemory:
    """The memory that this process writes. It is no file on disk, and ends with its last user."""

    def __init__(self) -> None:
        self._number = 0
        self._allocate(1)

    def write(self, tensors: Sequence[Tensor]) -> tuple[Written, list[Tensor]]:
        """Copy tensors (without gaps) into the memory, over earlier ones, which nobody may be reading.

        Tensors that are already there, as the last call returned them, are not copied.

        Returns:
            What another rank needs to read them, and the same tensors in this memory. Tensors of a GPU must
            stay there, and are returned as they are.
        """
        needed = sum(map(_room, tensors))
        if needed > len(self._map):
            self.close()
            self._allocate(needed)
        places = _laid_out(self._map, tensors)
        for tensor, place in zip(tensors, places, strict=True):
            if tensor.data_ptr() != place.data_ptr():
                place.copy_(tensor)
        kept = [place if tensor.is_cpu else tensor for tensor, place in zip(tensors, places, strict=True)]
        return Written(f"/proc/{os.getpid()}/fd/{self._file}", self._number, len(self._map)), kept

    def _allocate(self, size: int) -> None:
        self._file = os.memfd_create("splitee-rank")
        os.ftruncate(self._file, size)
        self._map = mmap.mmap(self._file, size)
        self._number += 1

    def close(self) -> None:
        """No rank can open it after this; one that has opened it keeps it."""
        os.close(self._file)


class OthersMemory:
    """The memory of another rank."""

    def __init__(self) -> None:
        self._map: mmap.mmap
        self._number = 0

    def read(self, written: Written, outlines: Iterable[Tensor]) -> list[Tensor]:
        """The tensors that the other rank has written, in its memory, until it writes again.

        `outlines`: tensors of the same shapes, types and strides.

        Raises:
            OSError: the memory cannot be opened.
        """
        if written.number != self._number:
            with Path(written.path).open("r+b") as file:
                self._map = mmap.mmap(file.fileno(), written.size)
            self._number = written.number
        return _laid_out(self._map, outlines)


def _laid_out(memory: mmap.mmap, outlines: Iterable[Tensor]) -> list[Tensor]:
    """Tensors like `outlines`, one after the other in memory."""
    found, offset = [], 0
    for outline in outlines:
        kind, count = outline.dtype, outline.numel()
        if count:
            flat = torch.frombuffer(memory, dtype=kind, count=count, offset=offset)
        else:  # which frombuffer refuses
            flat = torch.empty(0, dtype=kind)
        found.append(flat.as_strided(outline.shape, outline.stride()))
        offset += _room(outline)
    return found


def _room(tensor: Tensor) -> int:
    """Bytes that it takes, with the gap to the next one."""
    return -(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT
