# SPDX-License-Identifier: Apache-2.0
"""Software as it is sent to a device: wheels and a signed list of them, in one file.

The file is a line, `splitee software 1 SIGNATURE LENGTH`, then a manifest of LENGTH bytes (JSON), then the
wheels, one after the other in the manifest's order, or none if devices fetch them from an index. A device
interprets nothing after the first line before it has checked the signature.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO

import msgspec
from msgspec import Meta

from splitee.errors import SoftwareError
from splitee.inference.signatures import ReleaseKey
from splitee.protocol.fields import Count, Digest
from splitee.software.versions import version_key
from splitee.validation_errors import format_error

FIRST_LINE = re.compile(rb"splitee software 1 ([0-9a-f]{128}) ([1-9][0-9]{0,6})\n")
LONGEST_LINE = 200  # bytes
MOST_MANIFEST = 1 << 20  # bytes
MOST_WHEELS = 500
LARGEST_WHEEL = 4 << 30  # bytes
PIECE = 1 << 20  # bytes that are copied at a time
PACKAGE = "hetero-splitee"
ANY = "any"
PYTHON = re.compile("cp3([0-9]{1,2})")

WheelName = Annotated[
    str,
    Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+!]{0,100}(-[A-Za-z0-9_.+!]{1,100}){4,5}\.whl\Z", max_length=300),
]


def normalised(name: str) -> str:
    """A distribution's name as indices write it (PEP 503): in lower case, with hyphens."""
    return re.sub(r"[-_.]+", "-", name).lower()


class Wheel(msgspec.Struct, frozen=True):
    """One of the wheels.

    Attributes:
        name: of the file, DISTRIBUTION-VERSION-PYTHON-ABI-PLATFORM.whl.
        size: bytes of the file.
        sha256: of the file.
    """

    name: WheelName
    size: Annotated[int, Meta(ge=1, le=LARGEST_WHEEL)]
    sha256: Digest

    @property
    def distribution(self) -> str:
        """The distribution's name, normalised."""
        return normalised(self.name.split("-")[0])

    @property
    def version(self) -> str:
        return self.name.split("-")[1]

    @property
    def tags(self) -> tuple[str, str, str]:
        """Of Python, of its ABI and of the platform."""
        python, abi, platform = self.name.removesuffix(".whl").rsplit("-", 3)[1:]
        return python, abi, platform


class SoftwareManifest(msgspec.Struct, frozen=True):
    """The signed part of a file.

    Attributes:
        version: of splitee.
        python: the Python that all wheels fit, such as cp311; with a + also all later ones; any: every one
            on which splitee runs.
        machine: likewise, such as aarch64; any: every one.
        unpacked: bytes of the installed wheels.
        wheels: those to be installed, beside what the device has.
        index: address of the package index that has the wheels; "": they are in the file.
    """

    version: Annotated[str, Meta(max_length=40)]
    python: Annotated[str, Meta(pattern=r"^(any|cp3[0-9]{1,2}\+?)\Z")]
    machine: Annotated[str, Meta(pattern=r"^[a-z0-9_]{1,20}\Z")]
    unpacked: Count
    wheels: Annotated[tuple[Wheel, ...], Meta(min_length=1, max_length=MOST_WHEELS)]
    index: Annotated[str, Meta(pattern=r"^(https?://[!-~]{1,500})?\Z")] = ""

    @property
    def size(self) -> int:
        """Bytes of all wheels."""
        return sum(wheel.size for wheel in self.wheels)

    def check_machine(self, machine: str, python: str) -> None:
        """Raises SoftwareError: it is not for this `machine` (aarch64) and this `python` (cp311)."""
        if self.machine not in (ANY, machine) or not _fits(self.python, python):
            raise SoftwareError(
                f"splitee {self.version} is for {self.machine} and Python {self.python}, this device is "
                f"{machine} and {python}: pack wheels for it (`splitee pack`)"
            )


@dataclass(frozen=True)
class Wheelhouse:
    """A file of software that the fleet has signed.

    Attributes:
        manifest: the signed part of the file.
        digest: SHA-256 of the manifest, hexadecimal.
    """

    manifest: SoftwareManifest
    digest: str
    _file: BinaryIO
    _start: int  # of the first wheel, in bytes

    @classmethod
    def read(cls, file: BinaryIO, key: ReleaseKey) -> Wheelhouse:
        """Reads the signed part of `file`, which must stay open for `extract`.

        Raises:
            SoftwareError: it is not such a file, damaged, or not signed by `key`.
            OSError: it cannot be read.
        """
        signature, data, start = _signed_part(file)
        key.check_software(data, signature)
        return cls(_manifest(file, data, start), hashlib.sha256(data).hexdigest(), file, start)

    def file_digest(self) -> str:
        """SHA-256 of the whole file, hexadecimal. Raises OSError: it cannot be read."""
        digest = hashlib.sha256()
        self._file.seek(0)
        while piece := self._file.read(PIECE):
            digest.update(piece)
        return digest.hexdigest()

    def extract(self, folder: Path) -> list[Path]:
        """Writes the wheels into `folder`, and checks each; returns their paths in the manifest's order.

        Raises:
            SoftwareError: one is damaged.
            OSError: one cannot be written.
        """
        made = []
        self._file.seek(self._start)
        for wheel in self.manifest.wheels:
            made.append(folder / wheel.name)
            with made[-1].open("xb") as copy:
                digest = _copy(self._file, copy, wheel.size)
            if digest != wheel.sha256:
                raise SoftwareError(f"the software is damaged at {wheel.name}: fetch it again")
        return made


def unverified_manifest(file: BinaryIO) -> SoftwareManifest:
    """The manifest of a file, whoever has signed it: for those who send the file and install nothing.

    Raises:
        SoftwareError: it is no such file, or damaged.
        OSError: it cannot be read.
    """
    _signature, data, start = _signed_part(file)
    return _manifest(file, data, start)


def _fits(wanted: str, python: str) -> bool:
    """Whether a device's `python`, such as cp311, is the one that wheels need: cp311, cp310+ or any."""
    if not wanted.endswith("+"):
        return wanted in (ANY, python)
    match = PYTHON.fullmatch(python)
    return match is not None and int(match[1]) >= int(wanted[3:-1])


def _signed_part(file: BinaryIO) -> tuple[str, bytes, int]:
    """Signature, manifest, and where the wheels start. Raises SoftwareError."""
    file.seek(0)
    line = file.readline(LONGEST_LINE)
    match = FIRST_LINE.fullmatch(line)
    if match is None or int(match[2]) > MOST_MANIFEST:
        raise SoftwareError("expected software for devices, a file that `splitee pack` has written")
    data = file.read(int(match[2]))
    return match[1].decode(), data, len(line) + len(data)


def _manifest(file: BinaryIO, data: bytes, start: int) -> SoftwareManifest:
    """Raises SoftwareError: it is not of this release, or the wheels are not as long as it says."""
    try:
        manifest = msgspec.json.decode(data, type=SoftwareManifest)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise SoftwareError(
            f"the software's manifest is not of this release: {format_error(error, data)}"
        ) from None
    if version_key(manifest.version) is None:
        raise SoftwareError(f"expected a version such as 1.2.3 or 1.2.3rc1, not {manifest.version!r}")
    if file.seek(0, os.SEEK_END) != start + (0 if manifest.index else manifest.size):
        raise SoftwareError("the software is cut off, or there is more than its wheels: fetch it again")
    return manifest


def _copy(source: BinaryIO, target: BinaryIO, size: int) -> str:
    """Copies `size` bytes, or as many as there are; returns their SHA-256, hexadecimal."""
    digest = hashlib.sha256()
    while size > 0 and (piece := source.read(min(size, PIECE))):
        target.write(piece)
        digest.update(piece)
        size -= len(piece)
    return digest.hexdigest()
