# SPDX-License-Identifier: Apache-2.0
"""Writes requirements/*.txt, the pinned packages of an installation as root: make lock.

Each package is pinned to the version of constraints.txt, with the hashes of its files in the package index,
for Linux on x86_64 and aarch64. With --require-hashes pip installs no other files.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "requirements"
PYTHON = "3.11"  # the oldest supported version
EXTRAS: dict[str, tuple[str, ...]] = {"base": (), "train": ("train",), "server": ("server", "page")}
PINNED = re.compile(r"([\w.-]+)==")
TORCH = ("torch", "torchvision")
CUDA_PREFIXES = (
    "cuda-",
    "nvidia-",
    "triton",
)  # prefixes of the packages that only torch with CUDA needs


def lock(name: str, source: str, *flags: str) -> str:
    """Write requirements/NAME.txt for `source` and return its text; "-": the packages that build a wheel.

    Packages that constraints.txt does not name keep the version in the existing file.
    """
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    path = FOLDER / f"{name}.txt"
    subprocess.run(
        [
            str(Path(sys.executable).with_name("uv")),
            *("pip", "compile", source, *flags, "-c", "constraints.txt", "-o", str(path.relative_to(ROOT))),
            *("--universal", "--python-version", PYTHON, "--generate-hashes", "--only-binary", ":all:"),
            *("--no-emit-index-url", "--no-annotate", "--custom-compile-command", "make lock", "--quiet"),
        ],
        cwd=ROOT,
        input="\n".join(pyproject["build-system"]["requires"]),
        text=True,
        check=True,
    )
    return path.read_text()


def without_torch(server: str) -> list[str]:
    """Flags that leave out torch and its CUDA packages, for servers where torch is installed otherwise."""
    names = PINNED.findall(server)
    left_out = sorted({name for name in names if name in TORCH or name.startswith(CUDA_PREFIXES)})
    return [flag for name in left_out for flag in ("--no-emit-package", name)]


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    lock("build", "-")
    for name, extras in EXTRAS.items():
        flags = [flag for extra in extras for flag in ("--extra", extra)]
        text = lock(name, "pyproject.toml", *flags)
    lock("server-without-torch", "pyproject.toml", *flags, *without_torch(text))  # flags of "server"


if __name__ == "__main__":
    main()
