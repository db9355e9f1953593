# SPDX-License-Identifier: Apache-2.0
"""Fetch the browser libraries from their npm packages, or compare the present files with recorded hashes.

    python scripts/vendor.py [--check]

Without --check it needs npm on PATH, and a registry that npm can reach. The exit code is 1 if a file differs
from its recorded SHA-256; in that case nothing is written.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "web/splitee_web/static/vendor"  # libraries of the pages
TESTS = ROOT / "tests/support/vendor"  # libraries of tests


@dataclass(frozen=True)
class Library:
    """Files of one npm package. `files`: SHA-256 by path in the package."""

    name: str
    version: str
    licence: str
    files: Mapping[str, str]
    into: Path = PAGES

    @property
    def folder(self) -> Path:
        return self.into / f"{self.name}-{self.version}"

    def path(self, member: str) -> Path:
        """The path at which a file of the package is stored."""
        return self.folder / Path(member).name


LIBRARIES = (
    # Its standalone module contains preact, whose licence is the next library.
    Library(
        "htm",
        "3.1.1",
        "Apache-2.0",
        {
            "preact/standalone.module.js": "72284e8e9079c87817145df1110f74e8a2aa040b2fc384922e18dfcb46fc1fd7",
            "LICENSE": "740725f7252e750af735d0028cc534970772f513331e9f68150fede8fb3ce00f",
        },
    ),
    Library(
        "preact",
        "10.29.8",
        "MIT",
        {"LICENSE": "1fe6958409c8c257a70c587a18b6f7f412b179b456630790d30b2ec9a8e4b7d4"},
    ),
    Library(
        "uplot",
        "1.6.32",
        "MIT",
        {
            "dist/uPlot.esm.js": "5dd9b3281aa64b461b42d9945f6adb2649d346502b12281a9ae0d46599a80eba",
            "dist/uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
            "LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
        },
    ),
    Library(
        "axe-core",
        "4.14.1",
        "MPL-2.0",
        {
            "axe.min.js": "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c",
            "LICENSE": "af175b9d96ee93c21a036152e1b905b0b95304d4ae8c2c921c7609100ba8df7e",
            "LICENSE-3RD-PARTY.txt": "4f8563870d0fca38bbc3e00b6f670cb7fa9f380ba9f26a7f7d1184a6b18b1653",
        },
        into=TESTS,
    ),
)


def faults(libraries: Sequence[Library] = LIBRARIES) -> list[str]:
    """A line for each file that is missing or differs, and for each unrecorded file."""
    found = []
    for library in libraries:
        for member, digest in library.files.items():
            path = library.path(member)
            if not path.is_file():
                found.append(f"{path.relative_to(ROOT)}: missing")
            elif _sha256(path.read_bytes()) != digest:
                found.append(f"{path.relative_to(ROOT)}: not the file of {library.name} {library.version}")
    recorded = {library.path(member) for library in libraries for member in library.files}
    recorded.update(into / "README.md" for into in (PAGES, TESTS))
    for into in (PAGES, TESTS):
        found += [
            f"{path.relative_to(ROOT)}: of no library"
            for path in sorted(into.rglob("*"))
            if path.is_file() and path not in recorded
        ]
    return found


def fetch(library: Library, scratch: Path) -> dict[Path, bytes]:
    """The files of a package after a check of their hashes, by the paths at which to store them.

    Raises:
        SystemExit: the hash of a file is not the recorded one.
    """
    package_version = f"{library.name}@{library.version}"
    packed = subprocess.run(
        ["npm", "pack", "--silent", package_version], cwd=scratch, capture_output=True, text=True, check=True
    )
    contents = {}
    with tarfile.open(scratch / packed.stdout.strip()) as package:
        for member, digest in library.files.items():
            file = package.extractfile(f"package/{member}")
            content = file.read() if file is not None else b""
            if _sha256(content) != digest:
                raise SystemExit(
                    f"{package_version}: {member} has the SHA-256 {_sha256(content)}, recorded is {digest}"
                )
            contents[library.path(member)] = content
    return contents


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def main(arguments: Sequence[str]) -> int:
    if arguments and list(arguments) != ["--check"]:
        print(__doc__, file=sys.stderr)
        return 2
    if not arguments:
        with tempfile.TemporaryDirectory(prefix="vendor-") as scratch:
            fetched = [fetch(library, Path(scratch)) for library in LIBRARIES]
        for contents in fetched:
            for path, content in contents.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    found = faults()
    print("\n".join(found) or f"{len(LIBRARIES)} libraries as recorded")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
