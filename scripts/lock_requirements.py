# SPDX-License-Identifier: Apache-2.0
"""Writes requirements/*.txt, what an installation as root takes: make lock.

Each package is pinned to the version of constraints.txt, with the hashes that the package index states for
its files, for Linux on x86_64 and on aarch64. pip takes nothing else with --require-hashes.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "requirements"
PYTHON = "3.11"  # the oldest that is supported
EXTRAS: dict[str, tuple[str, ...]] = {"base": (), "train": ("train",), "server": ("server", "page")}
PINNED = re.compile(r"([\w.-]+)==")
TORCH = ("torch", "torchvision")
OF_CUDA = (
    "cuda-",
    "nvidia-",
    "triton",
)  # what the names of packages begin with that only torch with CUDA needs


def lock(name: str, source: str, *flags: str) -> str:
    """Writes requirements/NAME.txt for a requirements file, and returns it; "-": for what builds a wheel.

    What constraints.txt does not name keeps the version that the file has.
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
    """The flags by which the server's packages are without torch, for a torch that comes from elsewhere."""
    names = PINNED.findall(server)
    left_out = sorted({name for name in names if name in TORCH or name.startswith(OF_CUDA)})
    return [flag for name in left_out for flag in ("--no-emit-package", name)]


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    lock("build", "-")
    for name, extras in EXTRAS.items():
        flags = [flag for extra in extras for flag in ("--extra", extra)]
        text = lock(name, "pyproject.toml", *flags)
    lock("server-without-torch", "pyproject.toml", *flags, *without_torch(text))  # as the last one


if __name__ == "__main__":
    main()
