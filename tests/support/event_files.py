# SPDX-License-Identifier: Apache-2.0
"""Reads TensorBoard's event files: TensorFlow's record format, with verified checksums."""

from __future__ import annotations

import struct
from pathlib import Path

from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event


def masked(data: bytes) -> int:
    """The checksum as tensorflow/core/lib/hash/crc32c.h masks it."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events(path: Path) -> list[Event]:
    """All events of one file."""
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack_from("<Q", data)
        header, record, rest = data[:8], data[12 : 12 + length], data[16 + length :]
        assert struct.unpack("<I", data[8:12]) == (masked(header),)
        assert struct.unpack("<I", data[12 + length : 16 + length]) == (masked(record),)
        found.append(Event.FromString(record))
        data = rest
    return found


def curves(directory: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """{folder below `directory`: {tag: [(step, value), ...]}}, including repetitions in the files."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for path in sorted(directory.rglob("events.out.tfevents.*")):
        of_folder = found.setdefault(str(path.parent.relative_to(directory)), {})
        first, *others = events(path)
        assert first.file_version == "brain.Event:2"
        for event in others:
            for value in event.summary.value:
                of_folder.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found
