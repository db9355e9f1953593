# SPDX-License-Identifier: Apache-2.0
"""Makes a file of software for devices: a signed list of wheels, followed by the wheels."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from splitee.durable import write_atomically
from splitee.errors import ConfigError
from splitee.inference.signatures import ReleaseSigner
from splitee.software.versions import version_key
from splitee.software.wheelhouse import ANY, MOST_WHEELS, PACKAGE, PYTHON, SoftwareManifest, Wheel, WheelName

STABLE_ABI = "abi3"  # a wheel with it also fits all later Pythons
OLDEST_MINOR = 11  # of Python 3.11, the oldest on which splitee runs


def describe(wheels: Sequence[Path], index: str = "") -> SoftwareManifest:
    """The manifest of a file with these wheels. `index`: where devices fetch them; "": from the file.

    Raises ConfigError: one is not a wheel, splitee's own is missing, or they are for different machines.
    """
    if len(wheels) > MOST_WHEELS:
        raise ConfigError(f"expected at most {MOST_WHEELS} wheels, got {len(wheels)}")
    listed = [_wheel(path) for path in wheels]
    names = [wheel.distribution for wheel in listed]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"expected one wheel of each package, got several of {', '.join(doubled)}")
    own = next((wheel for wheel in listed if wheel.distribution == PACKAGE), None)
    if own is None:
        raise ConfigError("expected splitee's own wheel (hetero_splitee-VERSION-....whl) among them")
    if version_key(own.version) is None:
        raise ConfigError(f"{own.name}: expected a version such as 1.2.3 or 1.2.3rc1")
    return SoftwareManifest(
        version=own.version,
        python=_python(listed),
        machine=_only("machine", (_machine(wheel) for wheel in listed)),
        unpacked=sum(map(_unpacked, wheels)),
        wheels=tuple(listed),
        index=index,
    )


def pack(wheels: Sequence[Path], manifest: SoftwareManifest, signer: ReleaseSigner, path: Path) -> None:
    """Writes the file at `path`. Raises StateError: it cannot be written."""
    data = msgspec.json.encode(manifest)
    signature = signer.sign_software(data)

    def write(file: BinaryIO) -> None:
        file.write(f"splitee software 1 {signature} {len(data)}\n".encode() + data)
        for wheel in wheels if not manifest.index else ():
            with wheel.open("rb") as content:
                shutil.copyfileobj(content, file)

    write_atomically(path, write)


def _wheel(path: Path) -> Wheel:
    try:
        name = msgspec.convert(path.name, WheelName)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Wheel(name, path.stat().st_size, digest)
    except msgspec.ValidationError:
        raise ConfigError(f"{path}: expected a wheel, DISTRIBUTION-VERSION-PYTHON-ABI-PLATFORM.whl") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def _unpacked(path: Path) -> int:
    """Bytes of a wheel's files."""
    try:
        with zipfile.ZipFile(path) as wheel:
            return sum(entry.file_size for entry in wheel.infolist())
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError):  # the last two: it is damaged
        raise ConfigError(f"{path}: expected a wheel, and this is no zip file: fetch it again") from None


def _python(wheels: Sequence[Wheel]) -> str:
    """The Python that all wheels fit: cp312; that and all later ones, cp312+; or any."""
    stable = [wheel for wheel in wheels if wheel.tags[1] == STABLE_ABI]
    one = _only("Python", (_one_python(wheel) for wheel in wheels if wheel not in stable))
    least = max((_least_minor(wheel) for wheel in stable), default=0)
    if one == ANY:
        return f"cp3{least}+" if least > OLDEST_MINOR else ANY
    if int(one.removeprefix("cp3")) < least:
        raise ConfigError(f"expected wheels for one Python, got {one}, and cp3{least} or later")
    return one


def _one_python(wheel: Wheel) -> str:
    python = wheel.tags[0]
    if not python.startswith("cp"):
        return ANY
    if not PYTHON.fullmatch(python):
        raise ConfigError(f"{wheel.name}: expected a wheel for one Python such as cp311")
    return python


def _least_minor(wheel: Wheel) -> int:
    """12 of a wheel for the stable ABI of Python 3.12 and later, cp312-abi3."""
    found = [PYTHON.fullmatch(python) for python in wheel.tags[0].split(".")]
    return min((int(match[1]) for match in found if match), default=0)


def _machine(wheel: Wheel) -> str:
    """From the last of its platforms' names, such as manylinux_2_28_aarch64."""
    platform = wheel.tags[2].split(".")[-1]
    for machine in ("aarch64", "x86_64"):
        if platform.startswith(("linux", "manylinux", "musllinux")) and platform.endswith(machine):
            return machine
    if platform != ANY:
        raise ConfigError(f"{wheel.name}: expected a wheel for Linux on aarch64 or x86_64, or for any")
    return ANY


def _only(what: str, found: Iterable[str]) -> str:
    """The one value that all wheels fit."""
    others = sorted(set(found) - {ANY})
    if len(others) > 1:
        raise ConfigError(f"expected wheels for one {what}, got {' and '.join(others)}: pack a file for each")
    return others[0] if others else ANY
